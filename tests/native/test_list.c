/* Lists and queues: order and ends after every kind of change, compared with an array. */
#include "core/list.h"

#include "check.h"

#define THINGS 8

typedef struct thing {
    int name;
    AQ_LINK(struct thing) link;
    AQ_LINK(struct thing) other_link;
    struct thing *next;
} thing;

typedef AQ_LIST(thing) thing_list;

static thing things[THINGS];

/* The list has exactly these names, forwards and backwards. */
static void expect(const thing_list *list, const int *names, size_t length)
{
    const thing *at = list->first, *before = NULL;
    for (size_t i = 0; i < length; i++) {
        CHECK(at != NULL && at->link.previous == before);
        if (at == NULL)
            return;
        CHECK_INT(at->name, names[i]);
        before = at;
        at = at->link.next;
    }
    CHECK(at == NULL && list->last == before);
    CHECK((list->first == NULL) == (list->last == NULL));
}

static void test_both_ends(void)
{
    thing_list list = {0};
    expect(&list, NULL, 0);
    AQ_LIST_ADD_LAST(&list, &things[1], link);
    expect(&list, (const int[]){1}, 1);
    AQ_LIST_ADD_FIRST(&list, &things[0], link);
    AQ_LIST_ADD_LAST(&list, &things[2], link);
    expect(&list, (const int[]){0, 1, 2}, 3);
    AQ_LIST_REMOVE(&list, &things[1], link);
    CHECK(things[1].link.previous == NULL && things[1].link.next == NULL);
    expect(&list, (const int[]){0, 2}, 2);
    AQ_LIST_REMOVE(&list, &things[2], link);
    AQ_LIST_REMOVE(&list, &things[0], link);
    expect(&list, NULL, 0);
    AQ_LIST_ADD_FIRST(&list, &things[3], link);
    expect(&list, (const int[]){3}, 1);
}

/* Random changes: an array says what the list must be. */
static void test_any_order(void)
{
    thing_list list = {0};
    int names[THINGS], used[THINGS] = {0};
    size_t length = 0;
    uint64_t state = 1;
    for (int step = 0; step < 20000; step++) {
        size_t which = check_random(&state) % THINGS;
        if (used[which]) {
            size_t at = 0;
            while (names[at] != (int)which)
                at++;
            memmove(&names[at], &names[at + 1], (--length - at) * sizeof(names[0]));
            AQ_LIST_REMOVE(&list, &things[which], link);
        } else if (check_random(&state) % 2 != 0) {
            memmove(&names[1], &names[0], length++ * sizeof(names[0]));
            names[0] = (int)which;
            AQ_LIST_ADD_FIRST(&list, &things[which], link);
        } else {
            names[length++] = (int)which;
            AQ_LIST_ADD_LAST(&list, &things[which], link);
        }
        used[which] = !used[which];
        expect(&list, names, length);
    }
}

static void test_an_object_in_two_lists(void)
{
    thing_list one = {0}, other = {0};
    AQ_LIST_ADD_LAST(&one, &things[0], link);
    AQ_LIST_ADD_LAST(&other, &things[0], other_link);
    AQ_LIST_ADD_LAST(&other, &things[1], other_link);
    AQ_LIST_REMOVE(&other, &things[0], other_link);
    expect(&one, (const int[]){0}, 1);
    CHECK(other.first == &things[1] && other.last == &things[1]);
}

static void test_queue(void)
{
    thing_list queue = {0};
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < THINGS; i++)
            AQ_QUEUE_ADD(&queue, &things[i]);
        for (int i = 0; i < THINGS; i++) {
            CHECK(queue.first == &things[i]);
            queue.first = queue.first->next;
        }
        CHECK(queue.first == NULL); /* `last` is left as it is */
    }
}

int main(void)
{
    check_watchdog(60);
    for (int i = 0; i < THINGS; i++)
        things[i].name = i;
    test_both_ends();
    test_any_order();
    test_an_object_in_two_lists();
    test_queue();
    return check_done();
}
