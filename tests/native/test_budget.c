/* What connections hold counts once, and what they give back is forgotten, whatever threads do it. */
#include "core/budget.h"

#include "check.h"

#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>

#define THREADS 4
#define ROUNDS 20000

static int no_memory;

void *__real_malloc(size_t size); /* NOLINT: the linker's names */
void *__wrap_malloc(size_t size); /* NOLINT */
void *__wrap_malloc(size_t size)
{
    return no_memory ? NULL : __real_malloc(size);
}

static aq_counters counters;
static aq_reserve reserve;

static uint64_t held(const aq_account *account)
{
    return atomic_load(&account->held);
}

static void test_accounts(void)
{
    aq_budget budget = {.max = 100 * 1024};
    aq_account one = {.budget = &budget}, other = {.budget = &budget}, none = {0};

    aq_account_add(&one, AQ_ACCOUNT_FREE);
    CHECK_INT(atomic_load(&budget.used), 0);
    aq_account_add(&one, 1000);
    aq_account_add(&other, AQ_ACCOUNT_FREE + 2000);
    aq_account_add(&none, 1 << 30);
    CHECK_INT(atomic_load(&budget.used), 3000);
    CHECK_INT(aq_budget_left(&budget), 100 * 1024 - 3000);
    CHECK_INT(aq_budget_is_short(&budget), 0);
    aq_account_remove(&one, 2000);
    CHECK_INT(atomic_load(&budget.used), 2000);
    aq_account_add(&other, 88 * 1024);
    CHECK_INT(aq_budget_is_short(&budget), 1);
    aq_account_add(&other, 100 * 1024);
    CHECK_INT(aq_budget_left(&budget), 0);
    aq_account_remove(&other, held(&other));
    aq_account_remove(&one, held(&one));
    CHECK_INT(atomic_load(&budget.used), 0);
}

static void test_memory(void)
{
    aq_budget budget = {.max = 100 * 1024};
    aq_account account = {.budget = &budget};
    aq_memory memory = {&reserve, &account};
    uint8_t *block, *zeros, *large;

    CHECK_INT(aq_reserve_init(&reserve, &counters), 0);
    block = aq_memory_malloc(100, &memory);
    CHECK(block != NULL && held(&account) >= 100 && held(&account) < 200);
    memset(block, 7, 100);
    zeros = aq_memory_calloc(10, 20, &memory);
    CHECK(zeros != NULL && zeros[0] == 0 && zeros[199] == 0);
    block = aq_memory_realloc(block, 5000, &memory);
    CHECK(block != NULL && block[0] == 7 && block[99] == 7);
    CHECK_INT(held(&account), malloc_usable_size(block) + malloc_usable_size(zeros));
    CHECK_INT(atomic_load(&budget.library), held(&account));
    large = aq_memory_realloc(NULL, 70000, &memory);
    CHECK(large != NULL && atomic_load(&budget.used) > 0);

    /* Used up: what is small goes on, what is large does not. */
    atomic_store(&budget.max, 1);
    CHECK(aq_memory_malloc(8192, &memory) == NULL);
    CHECK(aq_memory_calloc(2, 4096, &memory) == NULL);
    CHECK(aq_memory_realloc(block, 9000, &memory) == NULL);
    CHECK_INT(block[99], 7); /* still there */
    block = aq_memory_realloc(block, 100, &memory);
    CHECK(block != NULL && block[99] == 7);
    aq_memory_free(large, &memory);

    /* From the reserve, where malloc() has nothing. */
    no_memory = 1;
    atomic_store(&budget.max, 100 * 1024);
    large = aq_memory_malloc(3000, &memory);
    no_memory = 0;
    CHECK(large != NULL && aq_reserve_owns(&reserve, large));
    memset(large, 9, 3000);
    large = aq_memory_realloc(large, 20000, &memory);
    CHECK(large != NULL && !aq_reserve_owns(&reserve, large) && large[2999] == 9);
    aq_memory_free(large, &memory);
    aq_memory_free(block, &memory);
    aq_memory_free(zeros, &memory);
    aq_memory_free(NULL, &memory);
    CHECK_INT(held(&account), 0);
    CHECK_INT(atomic_load(&budget.used), 0);
    CHECK_INT(atomic_load(&budget.library), 0);
    aq_reserve_destroy(&reserve);
}

static void test_growth(void)
{
    aq_budget budget = {.max = 64};
    CHECK_INT(aq_budget_growth(&budget, 0), 16); /* half of half of it */
    atomic_store(&budget.grown, 16);
    CHECK_INT(aq_budget_growth(&budget, 16), 16); /* its own is no others' */
    CHECK_INT(aq_budget_growth(&budget, 0), 8);
    atomic_store(&budget.grown, 33); /* the budget was made smaller */
    CHECK_INT(aq_budget_growth(&budget, 0), 0);
    CHECK_INT(aq_budget_growth(&budget, 34), 16); /* the two are not looked at in one moment */
}

static void *add_and_remove(void *context)
{
    aq_account *account = context;
    for (uint64_t i = 0; i < ROUNDS; i++)
        aq_account_add(account, i % 5000);
    for (uint64_t i = 0; i < ROUNDS; i++)
        aq_account_remove(account, i % 5000);
    return NULL;
}

static void test_threads(void)
{
    aq_budget budget = {.max = 1};
    aq_account accounts[2] = {{.budget = &budget}, {.budget = &budget}};
    pthread_t threads[THREADS];

    for (size_t i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, add_and_remove, &accounts[i % 2]), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(held(&accounts[0]), 0);
    CHECK_INT(held(&accounts[1]), 0);
    CHECK_INT(atomic_load(&budget.used), 0);
}

int main(void)
{
    check_watchdog(60);
    test_accounts();
    test_memory();
    test_growth();
    test_threads();
    return check_done();
}
