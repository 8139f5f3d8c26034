#include "core/counters.h"

const aq_counter_description aq_counter_descriptions[AQ_COUNTER_COUNT] = {
#define COUNT(name, unit, help) {#name, unit, help, 0},
#define DROP(name, unit, help) {#name, unit, help, 1},
    AQ_COUNTERS(COUNT, DROP)
#undef COUNT
#undef DROP
};
