/* A world for one engine on one thread, the same in every run: a clock that only moves when it is told to, a network
 * between QUIC sockets in memory, random numbers from a counter, and system calls that fail on demand.
 *
 * How the engine gets into it: the program is linked with --wrap, so that the calls of the engine named in sim.c come
 * here first. Its loop runs as it is; each time it wants to sleep it calls back, and there the target does what other
 * threads and the network would do meanwhile. A command that its caller waits for is carried out on the spot. Sockets
 * of services (TCP, public and local UDP) are the kernel's own.
 */
#ifndef SIM_H
#define SIM_H

#include "engine/engine.h"

#include "fuzz.h"

#include <sys/epoll.h>
#include <time.h>

#define SIM_CLIENT_PORT 40000 /* of the first client; the next ones follow, and a NAT adds SIM_CLIENTS */
#define SIM_CLIENTS 4

/* What happens to the next `count` datagrams on their way between QUIC sockets. */
enum sim_fault_kind {
    SIM_DELIVER,
    SIM_DROP,
    SIM_TWICE,
    SIM_CUT,       /* to `argument` bytes, 0 included */
    SIM_FLIP,      /* bit `argument` */
    SIM_HOLD,      /* until SIM_RELEASE */
    SIM_RELEASE,   /* what is held comes behind this one */
    SIM_REBIND,    /* a client's source port changes for good: another NAT binding */
    SIM_TRUNCATED, /* arrives with MSG_TRUNC */
    SIM_MARK,      /* congestion experienced */
    SIM_FAULTS
};

typedef struct {
    enum sim_fault_kind kind;
    uint32_t count;
    uint32_t argument;
} sim_fault_plan;

extern uint64_t sim_now;
extern sim_fault_plan sim_fault;
extern uint32_t sim_calls_left; /* the system call after so many fails with sim_errno; FUZZ_NO_FAILURE: none */
extern int sim_errno;
extern uint32_t sim_full;      /* so many sends find the QUIC socket full */
extern uint64_t sim_datagrams; /* on the wire since sim_begin() */

/* Called where the engine sleeps. `wait` as for epoll_pwait2(). */
extern void (*sim_sleep)(aq_engine *engine, const struct timespec *wait);
/* Takes what the engine sends instead of another socket of the engine; NULL: none. */
extern void (*sim_peer)(const uint8_t *data, size_t length);

void sim_begin(aq_engine *engine);
void sim_end(void); /* forgets the network */

/* A datagram for the server (client < 0) or a client, as if it came over the network. */
void sim_inject(int client, uint16_t from_port, const uint8_t *data, size_t length);
int sim_is_waiting(void); /* some datagram has not been read yet */

#endif
