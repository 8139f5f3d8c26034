#include "core/counters.h"

const char *const aq_counter_names[AQ_COUNTER_COUNT] = {
#define X(name) #name,
    AQ_COUNTERS(X)
#undef X
};
