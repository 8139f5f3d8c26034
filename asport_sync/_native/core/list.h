/* Intrusive lists: an object is in a list by a link of its own, and may be in several by several links. Nothing is
 * allocated, an object can be removed without a search, and an empty list is all zeros. Not thread-safe: whoever guards
 * a list guards the links of its objects.
 *
 * The macros evaluate their arguments more than once.
 */
#ifndef AQ_LIST_H
#define AQ_LIST_H

#include "aq.h"

#define AQ_LIST(type)                                                                                                  \
    struct {                                                                                                           \
        type *first, *last;                                                                                            \
    }
/* `previous` of the first object and `next` of the last one are NULL, as are both after a removal. */
#define AQ_LINK(type)                                                                                                  \
    struct {                                                                                                           \
        type *previous, *next;                                                                                         \
    }

/* The object is in no list by this link. */
#define AQ_LIST_ADD_FIRST(list, object, link)                                                                          \
    do {                                                                                                               \
        (object)->link.previous = NULL;                                                                                \
        (object)->link.next = (list)->first;                                                                           \
        if ((list)->first != NULL)                                                                                     \
            (list)->first->link.previous = (object);                                                                   \
        else                                                                                                           \
            (list)->last = (object);                                                                                   \
        (list)->first = (object);                                                                                      \
    } while (0)

/* Likewise. */
#define AQ_LIST_ADD_LAST(list, object, link)                                                                           \
    do {                                                                                                               \
        (object)->link.previous = (list)->last;                                                                        \
        (object)->link.next = NULL;                                                                                    \
        if ((list)->last != NULL)                                                                                      \
            (list)->last->link.next = (object);                                                                        \
        else                                                                                                           \
            (list)->first = (object);                                                                                  \
        (list)->last = (object);                                                                                       \
    } while (0)

/* The object is in this list by this link. */
#define AQ_LIST_REMOVE(list, object, link)                                                                             \
    do {                                                                                                               \
        if ((object)->link.previous != NULL)                                                                           \
            (object)->link.previous->link.next = (object)->link.next;                                                  \
        else                                                                                                           \
            (list)->first = (object)->link.next;                                                                       \
        if ((object)->link.next != NULL)                                                                               \
            (object)->link.next->link.previous = (object)->link.previous;                                              \
        else                                                                                                           \
            (list)->last = (object)->link.previous;                                                                    \
        (object)->link.previous = (object)->link.next = NULL;                                                          \
    } while (0)

/* A queue whose objects are only taken from its front need but one pointer each, `next`. */
#define AQ_QUEUE_ADD(queue, object)                                                                                    \
    do {                                                                                                               \
        (object)->next = NULL;                                                                                         \
        if ((queue)->first != NULL)                                                                                    \
            (queue)->last->next = (object);                                                                            \
        else                                                                                                           \
            (queue)->first = (object);                                                                                 \
        (queue)->last = (object);                                                                                      \
    } while (0)

#endif
