/* UDP associations of a connection, and the sockets that serve them.
 *
 * The table of associations and the sockets are shared by the pump (adds and removes associations, lists idle ones) and
 * the engine (reads sockets, finds the destination of a Packet from the peer). One mutex guards both; it is held for
 * one look-up and one copy of a datagram, or for one batch of a socket.
 */
#ifndef AQ_ASSOC_H
#define AQ_ASSOC_H

#include "aq.h"
#include "core/bucket.h"
#include "core/counters.h"
#include "core/events.h"
#include "core/list.h"
#include "core/map.h"
#include "core/ready.h"
#include "core/udp.h"
#include "tunnel/dgram.h"
#include "tunnel/group.h"
#include "tunnel/limits.h"
#include "tunnel/packet.h"

#include <pthread.h>

#define AQ_ASSOC_PREFIX_MAX 64
#define AQ_REFUSALS 8 /* maximum of addresses that get no new associations */

struct aq_udp;

/* A source: the address that datagrams come from, and the local one they are sent to. Sending to two addresses of this
 * machine makes two sources. */
typedef struct {
    aq_address peer;
    aq_address local; /* port 0; family 0: the socket has one address, or the datagram was a multicast or broadcast */
} aq_udp_source;

typedef struct aq_assoc {
    uint16_t association;
    uint16_t next_packet; /* pkt_id of the next UDP packet; guarded by the table's mutex */
    aq_udp_source source; /* immutable: its peer is the address in Packet headers */
    aq_sockaddr to;       /* immutable: destination of packets from the QUIC peer; AF_UNSPEC: the socket is connected */
    aq_sockaddr from;     /* immutable: source address of those packets; AF_UNSPEC: the kernel chooses */
    struct aq_udp *socket;                /* immutable: outlives the association */
    uint8_t header[AQ_PACKET_HEADER_MAX]; /* immutable: Packet header, complete but for pkt_id and size */
    uint8_t header_length;                /* immutable */
    uint8_t prefix_length;                /* guarded by the table's mutex */
    uint8_t prefix[AQ_ASSOC_PREFIX_MAX];  /* likewise */
    /* In its list, ordered by `placed`. */
    AQ_LINK(struct aq_assoc)
    order_link;                /* in its list, ordered by `placed`; guarded by the table's mutex, as is all below */
    uint64_t began;            /* aq_now() of its creation */
    uint64_t sent, received;   /* bytes of payload from the socket to the peer, and from the peer to the socket */
    uint64_t active;           /* aq_now() of the last packet in either direction */
    uint64_t placed;           /* time when it became the newest of the list */
    uint64_t unanswered_since; /* time of the visitor's first packet since the last answer; 0: none */
    uint8_t asked;             /* packets from the visitor, at most UINT8_MAX */
    uint8_t is_done;           /* index of its list in the table */
    uint8_t was_answered;      /* the service has answered at least once from its present address */
    uint8_t is_open;           /* client: packets that waited for it have been sent, so later ones may follow */
} aq_assoc;

/* An address that gets no new associations for some time. */
typedef struct {
    aq_address from; /* the port is ignored; family 0: every address */
    uint64_t until;
} aq_refusal;

/* Index 0: associations that may still be in use. Index 1: short exchanges, a question or two, their answers and
 * nothing since; these are evicted first. */
typedef AQ_LIST(aq_assoc) aq_assoc_list;

/* A packet that a client sent to the local service before the first answer in its association. */
typedef struct aq_kept_packet {
    struct aq_kept_packet *next;
    uint64_t sent;
    size_t length;
    uint16_t association;
    uint8_t data[];
} aq_kept_packet;

typedef struct aq_assocs {
    aq_ready_node node; /* first member; queued: UDP packets wait for the engine */
    _Atomic uint32_t references;
    aq_id connection; /* immutable, as are the next two */
    aq_ready *ready;
    aq_counters *counters;
    aq_events *events;    /* where ends of associations are posted; immutable; NULL: nowhere */
    uint64_t queue_limit; /* immutable */
    aq_buckets buckets;   /* any thread: the buckets of the connection's datagrams */
    pthread_mutex_t mutex;
    aq_assoc **pages[256];  /* by association, high byte first; guarded by mutex, as is all below */
    aq_assoc_list lists[2]; /* by is_done; longest idle first, with a precision of a tenth of a second */
    uint32_t count;
    AQ_LIST(aq_kept_packet) kept; /* a queue, in the order in which they were sent */
    size_t kept_bytes;
    aq_ranges *permitted;                    /* visitors' addresses, one reference; NULL: every address */
    aq_refusals refused;                     /* datagrams of others that came to public sockets */
    uint64_t payload_sent, payload_received; /* bytes of payload from the sockets, and to them */
    aq_refusal refusals[AQ_REFUSALS];
    _Atomic int dead; /* the connection is over; set with the mutex held */
    aq_dgram queue;   /* packets to the peer; producer: holder of the mutex, consumer: engine; created with the first
                         socket and published by has_queue */
    _Atomic int has_queue;
} aq_assocs;

typedef struct aq_waiting_source aq_waiting_source;

/* A public or local UDP socket. Guarded by the table's mutex except where noted. */
typedef struct aq_udp {
    aq_id id;
    int fd; /* owned; immutable until the engine closes it, after the datagrams collected for it have been sent */
    int is_public;          /* immutable */
    int has_many_addresses; /* immutable: public and bound to a wildcard address; both addresses distinguish sources */
    int family;             /* immutable: AF_INET or AF_INET6 */
    aq_assocs *assocs;      /* immutable; one reference */
    aq_map by_source;       /* public: source key -> association */
    aq_assoc *only;         /* local: the only association */
    aq_assoc *last;         /* association of the previous datagram: most come in runs */
    aq_map waiting_by_source;           /* public: source key -> source that Python was asked about */
    AQ_LIST(aq_waiting_source) waiting; /* all waiting sources, with their datagrams */
    uint32_t waiting_count;
    size_t waiting_bytes;
    int closed; /* nothing more is read */
    aq_udp_losses losses;
    int for_pump; /* immutable: the pump reads it from the beginning, the engine never */
    /* Owned by whoever reads the socket: no other refusal by the service is reported to Python until then. */
    _Atomic uint64_t refusal_told_until;
    uint64_t busy_datagrams, busy_since; /* [engine] datagrams read since the last traffic check, and its time */
    aq_group *group;                     /* immutable; one reference; NULL: none */
    aq_member *member;                   /* with a group: owned; what it points to is guarded by the group's mutex */
} aq_udp;

/* Maximum of new sources that one aq_udp_read() asks about. */
#define AQ_UDP_ASKED 64
typedef struct {
    uint32_t received;  /* datagrams */
    uint32_t forwarded; /* of those, the ones with an association: queued, or dropped and counted */
    int more;           /* the socket may hold more */
    int refused;        /* local socket: ICMP error about the service, as errno; 0: none */
    int was_answered;   /* with refused: the service has answered before */
    uint64_t denied;    /* public socket: datagrams of visitors that are not permitted, to be reported now; 0: none */
    aq_address denied_peer; /* with denied: the latest of these visitors */
    uint32_t asked;
    aq_udp_source sources[AQ_UDP_ASKED];
} aq_udp_batch;

aq_assocs *aq_assocs_new(aq_id connection, aq_ready *ready, aq_counters *counters, uint64_t queue_limit);
void aq_assocs_ref(aq_assocs *assocs);
void aq_assocs_unref(aq_assocs *assocs); /* [any] */
void aq_assocs_kill(aq_assocs *assocs);  /* [engine] marks the connection as over: nothing more is sent */

/* [any, mutex held] Finds an association; NULL: there is none. */
aq_assoc *aq_assocs_find(aq_assocs *assocs, uint16_t association);

/* [any] Refuses new associations of an address, or of every address where it is NULL, until then, without asking
 * Python. With more addresses than AQ_REFUSALS the one that expires first is replaced. */
void aq_assocs_refuse(aq_assocs *assocs, const aq_address *from, uint64_t until);
/* [any, mutex held] Returns whether new associations of the address are refused now. */
int aq_assocs_refuses(const aq_assocs *assocs, const aq_address *from, uint64_t now);

/* [engine] From now on only these visitors are permitted; NULL: all. Takes a reference of its own. Associations of
 * others go on until they are removed. */
void aq_assocs_permit(aq_assocs *assocs, aq_ranges *permitted);
/* [pump] Lists associations of visitors that are not permitted. Returns how many. */
uint32_t aq_assocs_list_refused(aq_assocs *assocs, uint16_t *out, uint32_t max);

/* [engine or pump, whichever reads the socket now] Reads one batch from the socket. Returns 0, AQ_ERR_GONE, or
 * AQ_ERR_SYSTEM - errno if the socket cannot be read now. */
int64_t aq_udp_read(aq_udp *udp, aq_udp_receiver *receiver, aq_udp_batch *batch);

/* Returns how many datagrams the kernel has merged into a message. */
uint32_t aq_udp_datagrams(const aq_udp_message *message);
/* [engine] Handles the datagrams of a message that was read from a socket of the group. Returns 0, or AQ_ERR_GONE if
 * this member takes nothing any more; then nothing is counted. */
int64_t aq_udp_take(aq_udp *udp, const aq_udp_message *message, aq_udp_batch *batch, uint64_t now);
/* Writes the key of the source that a message came from. Returns its length. */
size_t aq_udp_source_key(const aq_udp *udp, const aq_udp_message *message, uint8_t key[AQ_MAP_KEY_MAX]);
/* Returns whether an error of a UDP socket is about an earlier datagram; the socket itself is fine. */
int aq_udp_is_transient_error(int64_t error);
/* [engine] Begins to count the datagrams that the kernel drops before this socket is read. */
void aq_udp_begin_losses(aq_udp *udp);
/* [engine] Counts what the kernel has dropped before these messages were read. */
void aq_udp_count_losses(aq_udp *udp, const aq_udp_message *messages, int count);

/* [any] Drops the datagrams that wait for this source to get an association. */
void aq_udp_drop_source(aq_udp *udp, const aq_udp_source *source);

/* [pump] The functions behind their counterparts in aq_api.h. */
/* group: of the connection, for a public socket; NULL: none. */
aq_udp *aq_udp_new(aq_assocs *assocs, int fd, int is_public, aq_group *group, int64_t *error);
void aq_udp_detach(aq_udp *udp); /* removes its associations; fd stays open */
void aq_udp_free(aq_udp *udp);   /* after aq_udp_detach; does not close fd */
/* Adds an association and queues the datagrams that waited for it, in order. Returns 1 if there were any, else 0, or an
 * error. */
int64_t aq_assoc_new(aq_udp *udp, uint16_t association, const aq_udp_source *source, const uint8_t *prefix,
                     size_t prefix_length);
void aq_assocs_signal(aq_assocs *assocs); /* [any] notifies the engine that it should look at the queue */
/* [engine] Moves the association of a local socket to another socket, which replaces the old one under udp->fd. The new
 * one leads to where the service has not answered yet, and `prefix` precedes its packets. fd remains the caller's. On
 * failure all is as before; AQ_ERR_GONE: there is no association. */
int64_t aq_udp_replace(aq_udp *udp, int fd, const uint8_t *prefix, size_t prefix_length);
int64_t aq_assoc_forget(aq_assocs *assocs, uint16_t association); /* AQ_ERR_GONE when there is none */
/* Lists associations last active before this time, in the order of eviction. Returns how many. */
uint32_t aq_assocs_list_idle(aq_assocs *assocs, const aq_address *host, uint64_t before, uint16_t *out, uint32_t max);
/* Lists associations active since `active` whose visitor has waited for an answer since before `since`. Returns how
 * many. */
uint32_t aq_assocs_list_unanswered(aq_assocs *assocs, uint64_t since, uint64_t active, uint16_t *out, uint32_t max);

/* [any, mutex held] Records that a packet of the association, with so many bytes of payload, enters or leaves the
 * connection. */
void aq_assoc_seen(aq_assoc *assoc, int from_visitor, size_t length, uint64_t now);
/* [engine, mutex held] Keeps a copy of a packet that is about to be sent to a service that has not answered yet. Drops
 * the oldest copies once they are too old or too many. */
void aq_assoc_keep(aq_assoc *assoc, const uint8_t *payload, size_t length, uint64_t now);
/* [engine, mutex held] Calls send() for each kept packet of the association that may still be wanted. */
void aq_assoc_each_kept(aq_assoc *assoc, uint64_t now, void (*send)(void *, aq_assoc *, const uint8_t *, size_t),
                        void *context);

#endif
