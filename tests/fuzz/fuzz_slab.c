/* Names, references and stale ids against a plain list: an id never reaches another object, and each object is
 * destroyed once, when its name and its last reference are gone.
 */
#include "fuzz.h"

#include "core/slab.h"

#define OBJECTS 256
#define MAX_OBJECTS 40 /* objects that the table takes at once */

typedef struct {
    aq_id id;
    uint32_t references; /* from aq_slab_get() */
    int named, destroyed;
} object;

static object objects[OBJECTS];
static uint32_t made, alive, named, visited;

static void destroy(void *pointer)
{
    object *one = pointer;
    MUST(!one->destroyed);
    one->destroyed = 1;
    alive--;
}

static void visit(void *pointer, aq_id id, void *context)
{
    const object *one = pointer;
    MUST(one->named && one->id == id && context == &visited);
    visited++;
}

static void add(aq_slab *slab, fuzz_input *input)
{
    object *one = &objects[made];
    aq_id id;

    if (made == OBJECTS)
        return;
    memset(one, 0, sizeof(*one));
    fuzz_allocations_left = fuzz_u8(input) == 1 ? 0 : FUZZ_NO_FAILURE;
    id = aq_slab_add(slab, one);
    fuzz_allocations_left = FUZZ_NO_FAILURE;
    if (id < 0) {
        MUST(id == AQ_ERR_MEMORY || (id == AQ_ERR_LIMIT && alive == MAX_OBJECTS));
        return;
    }
    for (uint32_t i = 0; i < made; i++)
        MUST(objects[i].id != id); /* not even after it is gone */
    MUST(aq_id_kind((uint64_t)id) == AQ_KIND_STREAM);
    one->id = id;
    one->named = 1;
    made++;
    alive++;
    named++;
}

static void get(aq_slab *slab, object *one)
{
    void *found = aq_slab_get(slab, one->id);
    MUST(found == (one->named ? one : NULL));
    one->references += found != NULL;
}

static void put(aq_slab *slab, object *one)
{
    int last = one->references == 1 && !one->named;
    if (one->references == 0)
        return;
    one->references--;
    aq_slab_put(slab, one->id);
    MUST(one->destroyed == last);
}

static void end(aq_slab *slab, object *one)
{
    int was = one->named;
    int result = aq_slab_remove(slab, one->id);
    MUST(result == (was ? 0 : AQ_ERR_GONE));
    one->named = 0;
    named -= was != 0;
    MUST(one->destroyed == (one->references == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input input = {data, size};
    aq_slab slab;

    made = alive = named = 0;
    if (aq_slab_init(&slab, AQ_KIND_STREAM, MAX_OBJECTS, destroy) != 0)
        return 0;
    while (input.left > 0) {
        uint8_t what = fuzz_u8(&input), which = fuzz_u8(&input);
        object *one = made > 0 ? &objects[which % made] : NULL;
        if (what % 8 < 2)
            add(&slab, &input);
        else if (what % 8 == 7)
            MUST(aq_slab_get(&slab, (aq_id)((uint64_t)fuzz_u32(&input) << 32 | which)) == NULL || made > 0);
        else if (one == NULL)
            continue;
        else if (what % 8 < 4)
            get(&slab, one);
        else if (what % 8 == 4)
            put(&slab, one);
        else if (what % 8 == 5)
            end(&slab, one);
        else {
            visited = 0;
            aq_slab_each(&slab, visit, &visited);
            MUST(visited == named);
        }
        MUST(aq_slab_count(&slab) == named);
    }
    aq_slab_destroy(&slab); /* destroys what is left, whatever its references */
    MUST(alive == 0);
    return 0;
}
