/* Fair shares of the descriptors that visitors' TCP connections may use, see fair_share.c. Engine thread only. */
#ifndef AQ_FAIR_SHARE_H
#define AQ_FAIR_SHARE_H

#include "aq.h"
#include "engine/engine.h"

enum aq_fair_shares_answer {
    AQ_SHARE_FREE,        /* the port may accept one more */
    AQ_SHARE_TO_BE_FREED, /* it may, but a connection of another port has to be reset for it */
    AQ_SHARE_USED_UP      /* it has its fair share, and little is free */
};

/* Call before accepting. Returns 1 if limit and use were looked up again; else they are recent enough. */
int aq_fair_shares_check(aq_engine *engine);
int aq_fair_shares_exceeded(aq_engine *engine); /* whether more sockets are accepted than the budget allows */
enum aq_fair_shares_answer aq_fair_shares_allow(aq_engine *engine, const aq_credit *credit);
/* Returns the newest connection of the port with the most, if these are more than its fair share; NULL: none.
 * Connections relayed by a worker are left alone. */
aq_stream *aq_fair_shares_newest(aq_engine *engine);
void aq_fair_shares_enter(aq_engine *engine, aq_listener *listener); /* now in service; call aq_fair_shares_check() */
void aq_fair_shares_leave(aq_engine *engine, aq_listener *listener);
void aq_fair_shares_short(aq_engine *engine); /* call when accept() found no descriptor */

#endif
