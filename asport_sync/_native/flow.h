/* UDP associations of a connection, and the sockets that serve them.
 *
 * The table of associations and the sockets are shared by the pump thread (adds, removes, lists idle ones) and the
 * engine (reads sockets, looks up where a Packet from the peer goes). One mutex guards both; it is held for one look-up
 * and one copy of a datagram, or for one batch of a socket.
 */
#ifndef AQ_FLOW_H
#define AQ_FLOW_H

#include "aq.h"
#include "counters.h"
#include "dgram.h"
#include "map.h"
#include "packet.h"
#include "ready.h"
#include "udp.h"

#include <pthread.h>

#define AQ_FLOW_PREFIX_MAX 64
#define AQ_REFUSALS 8 /* addresses at a time that get no new associations */

struct aq_udp;

/* Who writes to a socket, and where to: who writes to two addresses of this machine is two sources. */
typedef struct {
    aq_address peer;
    aq_address local; /* port 0; family 0: the socket has one address, or the datagram went to a group */
} aq_udp_source;

typedef struct aq_flow {
    uint16_t association;
    uint16_t next_packet;  /* pkt_id of the next UDP packet; guarded by the table's mutex */
    aq_udp_source source;  /* immutable: its peer is the address in Packet headers */
    aq_sockaddr to;        /* immutable: where packets of the QUIC peer go; AF_UNSPEC: the socket is connected */
    aq_sockaddr from;      /* immutable: the address that they leave from; AF_UNSPEC: the kernel chooses */
    struct aq_udp *socket; /* immutable: outlives the flow */
    uint8_t header[AQ_PACKET_HEADER_MAX]; /* immutable: Packet header with everything but pkt_id and size */
    uint8_t header_length;                /* immutable */
    uint8_t prefix_length;                /* guarded by the table's mutex */
    uint8_t prefix[AQ_FLOW_PREFIX_MAX];   /* likewise */
    struct aq_flow *older, *newer;        /* in its list, by `placed`; guarded by the table's mutex, as is all below */
    uint64_t active;                      /* aq_now() of the last packet in either direction */
    uint64_t placed;                      /* when it became the newest of the list */
    uint64_t unanswered_since;            /* the user's first packet that no answer has followed; 0: there is none */
    uint8_t asked;                        /* packets of the user, up to UINT8_MAX */
    uint8_t is_done;                      /* which of the two lists of the table it is in */
    uint8_t was_answered;                 /* the service has answered at least once, from where it is now */
    uint8_t is_open;                      /* client: what waited for it has been sent, and nothing may go before that */
} aq_flow;

/* No new association for this address, whatever its port, until then. */
typedef struct {
    aq_address from; /* the port does not count; family 0: every address */
    uint64_t until;
} aq_refusal;

/* 0: associations that somebody may go on with. 1: a question or two, their answers, and nothing since: these make room
 * for others first. */
typedef struct {
    aq_flow *oldest, *newest;
} aq_flow_list;

/* A packet that a client has sent to the local service before its association had any answer. */
typedef struct aq_kept_packet {
    struct aq_kept_packet *next;
    uint64_t sent;
    size_t length;
    uint16_t association;
    uint8_t data[];
} aq_kept_packet;

typedef struct aq_flows {
    aq_ready_node node; /* first: "UDP packets wait" for the engine */
    _Atomic uint32_t references;
    aq_id connection; /* immutable, as are the next two */
    aq_ready *ready;
    aq_counters *counters;
    uint64_t queue_limit; /* immutable */
    pthread_mutex_t mutex;
    aq_flow **pages[256];  /* by association, high byte first; guarded by mutex, as is all below */
    aq_flow_list lists[2]; /* by is_done; the longest idle first, to a tenth of a second */
    uint32_t count;
    aq_kept_packet *kept_first, *kept_last; /* in the order they were sent */
    size_t kept_bytes;
    aq_refusal refusals[AQ_REFUSALS];
    _Atomic int dead; /* the connection is over; set with the mutex held */
    aq_dgram queue;   /* to the peer; its producer holds the mutex, the engine consumes; created with the first socket
                         and published by has_queue */
    _Atomic int has_queue;
} aq_flows;

typedef struct aq_waiting_source aq_waiting_source;

/* A public or local UDP socket. Guarded by the mutex of its table, but for what is immutable. */
typedef struct aq_udp {
    aq_id id;
    int fd;                     /* ours, immutable until the engine closes it, once nothing collected for it is left */
    int is_public;              /* immutable */
    int has_many_addresses;     /* immutable: public and bound to a wildcard; a source is told apart by both ends */
    int family;                 /* immutable: AF_INET or AF_INET6 */
    aq_flows *flows;            /* immutable; one reference */
    aq_map by_source;           /* public: source key -> flow */
    aq_flow *only;              /* local: the one association */
    aq_flow *last;              /* the flow of the datagram before: most come in runs */
    aq_map waiting_by_source;   /* public: source key -> source that was asked about */
    aq_waiting_source *waiting; /* all of them, with their datagrams */
    uint32_t waiting_count;
    size_t waiting_bytes;
    int closed; /* no more is read */
    aq_udp_losses losses;
    uint64_t refusal_told_until;         /* [engine] until then Python hears of no other refusal by the service */
    uint64_t busy_datagrams, busy_since; /* [engine] read since, at the last look at how much it is */
} aq_udp;

/* Sources that one aq_udp_read() has to ask about. */
#define AQ_UDP_ASKED 64
typedef struct {
    uint32_t received;  /* datagrams */
    uint32_t forwarded; /* of those, now in the queue */
    int more;           /* the socket may hold more */
    int refused;        /* local socket: what an ICMP message said about the service, as errno; 0: nothing */
    int was_answered;   /* with refused: the service has answered before */
    uint32_t asked;
    aq_udp_source sources[AQ_UDP_ASKED];
} aq_udp_batch;

aq_flows *aq_flows_new(aq_id connection, aq_ready *ready, aq_counters *counters, uint64_t queue_limit);
void aq_flows_ref(aq_flows *flows);
void aq_flows_unref(aq_flows *flows); /* [any] */
void aq_flows_kill(aq_flows *flows);  /* [engine] the connection is over: nothing is sent any more */

/* [any] With the mutex held. */
aq_flow *aq_flows_find(aq_flows *flows, uint16_t association);

/* [any] Python need not be asked about new associations of an address, or of any where it is NULL, until then: there
 * are none. With more addresses than AQ_REFUSALS the one whose time is over first is asked about again. */
void aq_flows_turn_away(aq_flows *flows, const aq_address *from, uint64_t until);
int aq_flows_turns_away(const aq_flows *flows, const aq_address *from, uint64_t now); /* [any] With the mutex held. */

/* [engine or pump, whoever reads the socket now] One batch from the socket. 0, AQ_ERR_GONE, or AQ_ERR_SYSTEM - errno
 * where it can't be read now. */
int64_t aq_udp_read(aq_udp *udp, aq_udp_receiver *receiver, aq_udp_batch *batch);

/* [any] What waits for this source is dropped. */
void aq_udp_drop_source(aq_udp *udp, const aq_udp_source *source);

/* [pump] The functions behind the ones of the same name in aq_api.h. */
aq_udp *aq_udp_new(aq_flows *flows, int fd, int is_public, int64_t *error);
void aq_udp_detach(aq_udp *udp); /* its flows go; fd stays open */
void aq_udp_free(aq_udp *udp);   /* after aq_udp_detach; does not close fd */
/* What waited for it follows, in order: 1 where something did, else 0, or an error. */
int64_t aq_flow_new(aq_udp *udp, uint16_t association, const aq_udp_source *source, const uint8_t *prefix,
                    size_t prefix_length);
void aq_flows_signal(aq_flows *flows); /* [any] the engine should look at the queue */
/* [engine] Local socket: its association goes on with another one, which takes its place under udp->fd and leads to
 * where the service has not answered yet, and with this in front of its packets. fd stays the caller's. On failure,
 * AQ_ERR_GONE where there is no association, all is as before. */
int64_t aq_udp_replace(aq_udp *udp, int fd, const uint8_t *prefix, size_t prefix_length);
int64_t aq_flow_forget(aq_flows *flows, uint16_t association); /* AQ_ERR_GONE when there is none */
/* Those last active before this, in the order in which they should make room for others. */
uint32_t aq_flows_list_idle(aq_flows *flows, const aq_address *host, uint64_t before, uint16_t *out, uint32_t most);
uint32_t aq_flows_list_unanswered(aq_flows *flows, uint64_t since, uint64_t active, uint16_t *out, uint32_t most);

/* [any] With the mutex held: a packet of the flow goes into the connection or comes out of it. */
void aq_flow_seen(aq_flow *flow, int from_user, uint64_t now);
/* [engine] With the mutex held: keeps a packet that is about to leave for a service that has not answered yet. Of the
 * oldest there is no more once they are too old or too many. */
void aq_flow_keep(aq_flow *flow, const uint8_t *payload, size_t length, uint64_t now);
/* [engine] With the mutex held: calls send() for each packet that is kept of the flow and may still be wanted. */
void aq_flow_each_kept(aq_flow *flow, uint64_t now, void (*send)(void *, aq_flow *, const uint8_t *, size_t),
                       void *context);

#endif
