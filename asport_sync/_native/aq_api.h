/* The boundary between Python and the engine: every type and function that crosses it, and nothing else.
 *
 * This text is read twice: by cffi (so there are no preprocessor lines here) and, through aq.h, by the C compiler.
 *
 * Rules of the boundary
 * - One owned pointer crosses it, the engine. Everything else is an aq_id, a value with a generation: a stale or
 *   mistyped id is answered with AQ_ERR_GONE, never with a crash. An id is > 0; errors are negative, so a function that
 *   creates something returns "id or error" in one number.
 * - No C thread ever enters Python. The engine posts events; aq_events_wait() hands them over in batches.
 * - Functions take copies of what they are given unless the comment says "lent" (for the time of the call) or "handed
 *   over" (the callee closes it).
 * - Thread labels: [any] any thread; [engine] the one thread that calls aq_engine_run(); [events] the one thread that
 *   calls aq_events_wait(); [worker] one thread per stream; [pump] the one thread that decides on UDP associations.
 * - Time is in nanoseconds unless the name says otherwise.
 */

typedef struct aq_engine aq_engine;
typedef int64_t aq_id;

/* Negative results. Values <= AQ_ERR_SYSTEM carry an errno: AQ_ERR_SYSTEM - errno. */
enum aq_error {
    AQ_OK = 0,
    AQ_ERR_STOPPED = -1,  /* the engine is stopping or stopped */
    AQ_ERR_GONE = -2,     /* the id names nothing that still exists */
    AQ_ERR_INVALID = -3,  /* an argument is out of range */
    AQ_ERR_MEMORY = -4,   /* no memory */
    AQ_ERR_LIMIT = -5,    /* a table or queue is full */
    AQ_ERR_STATE = -6,    /* not possible in this state, e.g. the exporter before the handshake */
    AQ_ERR_TLS = -7,      /* GnuTLS refused; the text says why */
    AQ_ERR_TIMEOUT = -8,  /* nothing within the time given */
    AQ_ERR_SYSTEM = -1000 /* and below: a system call failed, errno = AQ_ERR_SYSTEM - result */
};

/* An IP address and port. family is 4 or 6; IPv4 uses the first four bytes of ip. Host byte order for port. */
typedef struct {
    uint8_t family;
    uint8_t ip[16];
    uint16_t port;
    uint32_t scope; /* IPv6 zone index, 0 where none applies */
} aq_address;

enum aq_congestion { AQ_CONGESTION_CUBIC = 0, AQ_CONGESTION_RENO = 1, AQ_CONGESTION_BBR = 2 };

/* How UDP packets travel towards the peer. UNKNOWN only in aq_connection_admit(): the peer is asked which it takes, and
 * Packets wait until that is known. */
enum aq_carrier { AQ_CARRIER_DATAGRAM = 0, AQ_CARRIER_STREAM = 1, AQ_CARRIER_UNKNOWN = 2 };

enum aq_event_type {
    AQ_EVENT_CONNECTED =
        1,                /* handshake complete; peer, data = ALPN protocol; on a server this is the first word of it */
    AQ_EVENT_CLOSED = 2,  /* last word of a connection; code = aq_close_cause, value = error code, data = reason text */
    AQ_EVENT_COMMAND = 3, /* a whole command without payload; data = its bytes, and behind a ClientHello the next byte
                           of its stream where there is one; value = aq_carrier. A server only counts Heartbeats in
                           DATAGRAMs */
    AQ_EVENT_VIOLATION =
        4,               /* the peer broke the framing rules; data = what was wrong, as text; its bytes were dropped */
    AQ_EVENT_STREAM = 5, /* the peer opened a bidirectional stream; data = its complete Connect command */
    AQ_EVENT_STREAM_ENDED = 6, /* an attached stream is done; peer, result, code = nanoseconds it lasted, value = how
                                  many were not reported since the one before */
    AQ_EVENT_FLOW_WANTED =
        7,               /* a Packet for an unknown association; value = id, peer = its address; the payload waits */
    AQ_EVENT_PROBED = 8, /* answer to aq_connection_probe(); value = 1 alive, 0 silent */
    AQ_EVENT_LOG = 9,    /* code = severity as in logging (10 debug .. 40 error), data = text */
    AQ_EVENT_SOURCE_UNKNOWN =
        10, /* a public UDP socket has datagrams of a source without association; socket, peer, local; they wait */
    AQ_EVENT_ACCEPT_FAILED = 11, /* a listener rests for a moment; socket, code = errno, 0: connections were dropped
                                    because too many streams wait for the peer's credit; EDQUOT: its port has its share
                                    of the descriptors */
    AQ_EVENT_STREAM_BULK = 12,   /* a worker should relay this stream; peer, code as above, value = its socket, handed
                                    over */
    AQ_EVENT_UDP_BULK = 13,      /* the pump should read this UDP socket from now on; socket */
    AQ_EVENT_SILENCE = 14,       /* value = 1: nothing heard of the peer for aq_transport_options.silence, or a hint
                                          that it is gone; 0: it is heard again */
    AQ_EVENT_UDP_REFUSED = 15,   /* the service of a local UDP socket does not take datagrams: socket, code = errno,
                                    value = 1: it has answered before; at most once a second until aq_udp_move() */
    AQ_EVENT_STREAM_BEGUN = 16   /* an accepted TCP connection has its stream, or a dialled one stands; peer */
};

/* Why a connection ended. */
enum aq_close_cause {
    AQ_CLOSE_LOCAL = 1,             /* aq_connection_close() here */
    AQ_CLOSE_PEER_APPLICATION = 2,  /* CONNECTION_CLOSE of type 0x1d; value = application error code */
    AQ_CLOSE_PEER_TRANSPORT = 3,    /* CONNECTION_CLOSE of type 0x1c; value = transport error code */
    AQ_CLOSE_IDLE = 4,              /* idle timeout */
    AQ_CLOSE_HANDSHAKE_TIMEOUT = 5, /* no handshake within handshake_timeout */
    AQ_CLOSE_STATELESS_RESET = 6,   /* the peer has forgotten this connection */
    AQ_CLOSE_TLS = 7,               /* TLS refused on this side; value = alert */
    AQ_CLOSE_CERTIFICATE = 8,       /* the peer's certificate was not accepted here; data says why */
    AQ_CLOSE_INTERNAL = 9,          /* a fault in the engine, the library or memory; value = ngtcp2's code */
    AQ_CLOSE_VERSION = 10,          /* no common QUIC version */
    AQ_CLOSE_UNREACHABLE = 11,      /* the network says that nobody listens there (before the handshake was complete) */
    AQ_CLOSE_PEER_FAULT = 12        /* the peer broke QUIC's rules; value = the transport error code that it is told */
};

/* Stream error code, for aq_stream_reset(), of a stream that nothing will be relayed on. */
enum aq_stream_code { AQ_STREAM_REFUSED = 2 };

/* How a relayed or attached stream ended. */
enum aq_stream_end {
    AQ_END_FINISHED = 0,     /* both directions ended in order, nothing lost */
    AQ_END_PEER_RESET = 1,   /* the QUIC peer reset the stream */
    AQ_END_SOCKET_ERROR = 2, /* the TCP socket failed; error = errno */
    AQ_END_CONNECTION = 3,   /* the QUIC connection ended under it */
    AQ_END_LOCAL_RESET = 4,  /* aq_stream_reset() here */
    AQ_END_STOPPED = 5       /* the engine stopped */
};

typedef struct {
    uint64_t sent;     /* bytes taken from the TCP socket */
    uint64_t received; /* bytes written to the TCP socket */
    uint32_t end;      /* aq_stream_end */
    int32_t error;     /* errno with AQ_END_SOCKET_ERROR, the peer's stream error code with AQ_END_PEER_RESET, else 0 */
} aq_stream_result;

typedef struct {
    uint32_t type;   /* aq_event_type */
    uint32_t length; /* bytes used in data */
    aq_id endpoint;
    aq_id connection;
    aq_id stream;
    aq_id socket; /* UDP socket or listener */
    uint64_t code;
    uint64_t value;
    aq_address peer;
    aq_address local; /* with AQ_EVENT_SOURCE_UNKNOWN: where peer wrote to, port 0; family 0: it need not be told */
    aq_stream_result result;
    uint8_t data[256];
} aq_event;

/* Of a certificate, what decides whether peers take it from a server. */
typedef struct {
    int64_t not_before; /* seconds since 1970, UTC */
    int64_t not_after;
    int32_t names;  /* 1: the subjectAltName has a DNS name or an IP address */
    int32_t signs;  /* 1: the key may sign a handshake: there is no keyUsage, or one with digitalSignature */
    int32_t serves; /* 1: TLS servers may use it: there is no extendedKeyUsage, or one with serverAuth */
    int32_t strong; /* 1: the key is long enough for peers of ours */
    int32_t sealed; /* 1: its issuer signed it with an algorithm that peers of ours take, or it is its own issuer */
} aq_certificate;

typedef struct {
    int32_t server;             /* 1: server credentials, certificate and key required */
    int32_t verify;             /* client: verify chain and name. 0 only where the user said so explicitly */
    int32_t system_trust;       /* client: trust the system's certificate authorities */
    const uint8_t *certificate; /* server: PEM chain or one DER certificate */
    size_t certificate_length;
    const uint8_t *private_key; /* server: PEM or DER; PKCS#8, PKCS#1 or SEC1 */
    size_t private_key_length;
    const uint8_t *trust; /* client: further authorities, PEM bundle or one DER certificate; length 0: none */
    size_t trust_length;
    const uint8_t *pins; /* client: pins as of aq_certificate_pin(), 32 bytes each. The key of the server's own
                            certificate must be one of them, with verify 0 too; length 0: any key */
    size_t pins_length;
    const uint8_t *alpn; /* protocols as in the TLS extension: each one byte of length and its bytes */
    size_t alpn_length;
    const char *keylog_path; /* file that gets NSS key log lines, or NULL */
} aq_credentials_options;

typedef struct {
    uint32_t congestion;          /* aq_congestion */
    uint32_t max_udp_payload;     /* 1200..65527: upper bound for path MTU discovery, bytes of UDP payload */
    uint64_t idle_timeout;        /* advertised max_idle_timeout; 0: none */
    uint64_t keep_alive;          /* PING after this much silence; 0: never */
    uint64_t silence;             /* AQ_EVENT_SILENCE after this much and a probe timeout; 0: never */
    uint64_t handshake_timeout;   /* until the QUIC handshake is complete */
    uint64_t command_timeout;     /* until a stream's command is complete */
    uint64_t send_window;         /* bytes queued and unacknowledged per stream */
    uint64_t receive_window;      /* largest flow-control window per stream */
    uint64_t connection_window;   /* flow-control window of the connection = most bytes received and not yet consumed */
    uint64_t datagram_queue;      /* bytes of UDP packets waiting to be sent; the oldest are dropped beyond */
    uint64_t fragment_lifetime;   /* an incomplete Packet is given up after this */
    uint32_t max_streams_bidi;    /* bidirectional streams that the peer may hold open */
    uint32_t max_streams_uni;     /* unidirectional streams that the peer may hold open, once admitted */
    uint32_t max_pending_streams; /* streams waiting here for the peer's stream credit */
    int32_t gso;                  /* 1: UDP segmentation offload where the kernel has it */
    int32_t datagrams;            /* 1: takes DATAGRAM frames (RFC 9221) */
} aq_transport_options;

typedef struct {
    int32_t fd; /* bound UDP socket; duplicated, the caller closes its own */
    aq_id credentials;
    aq_transport_options transport;
    uint8_t reset_key[32]; /* key of stateless reset tokens; the same after a restart lets old peers learn at once */
    /* Half-open is a connection whose client is not admitted yet. */
    uint32_t retry_threshold; /* half-open connections from which on every client must prove its address by Retry */
    uint32_t max_half_open;   /* half-open connections; further ones are refused */
    uint32_t max_half_open_per_source; /* the same of one IPv4 address or IPv6 /64, as far as validated */
    uint32_t max_connections;          /* connections in all; further ones are refused */
} aq_listen_options;

typedef struct {
    int32_t fd; /* UDP socket, not connected, may be unbound; duplicated, the caller closes its own */
    aq_id credentials;
    aq_address remote;
    const char *server_name; /* name or IP literal that the certificate must match */
    int32_t send_sni;        /* 1: send server_name as SNI unless it is an IP literal */
    aq_transport_options transport;
} aq_connect_options;

typedef struct {
    aq_address peer;
    uint64_t smoothed_rtt, min_rtt, latest_rtt;                          /* nanoseconds */
    uint64_t congestion_window, bytes_in_flight;                         /* bytes */
    uint64_t packets_sent, packets_received, bytes_sent, bytes_received; /* UDP datagrams that carried QUIC */
    uint64_t packets_lost, bytes_lost; /* declared lost by recovery; 0 with libraries before 1.16, which don't count */
    uint64_t path_payload;             /* UDP payload size in use */
    uint64_t datagram_limit;           /* largest DATAGRAM payload now */
    uint64_t silence;                  /* nanoseconds since the last packet from the peer */
    uint64_t streams;                  /* bidirectional streams open */
    uint64_t flows;                    /* UDP associations */
    uint64_t datagrams_queued;         /* bytes of UDP packets waiting */
} aq_connection_info;

/* ---- library ------------------------------------------------------------------------------------------------ */

const char *aq_build_id(void);       /* [any] package version and hash of this header */
const char *aq_ngtcp2_version(void); /* [any] run-time version of ngtcp2 */
/* [any] "bundled", "bundled, adjusted" (vendor/adjustments.py), "system", or "system, fallback" where the build was not
 * told to use the system's and could not get another. */
const char *aq_ngtcp2_origin(void);
const char *aq_gnutls_version(void);                                 /* [any] */
const char *aq_strerror(int64_t error, char *buffer, size_t length); /* [any] fills and returns buffer */
/* [any] Whether two secrets are equal: 1 or 0, in a time that depends on their length only. */
int32_t aq_equal(const uint8_t *first, const uint8_t *second, size_t length);
/* [any] HKDF (RFC 5869) with SHA-256, 32 bytes. */
int64_t aq_derive_key(const uint8_t *secret, size_t secret_length, const uint8_t *salt, size_t salt_length,
                      const uint8_t *info, size_t info_length, uint8_t *out);
/* [any] A descriptor, the caller's from now on, that becomes readable when the time of day jumps, as it does when the
 * machine wakes up. Reading it fails with ECANCELED then, and makes it ready for the next time. */
int64_t aq_clock_watch(void);
/* [any] Arenas of malloc() from now on, where the C library is glibc; before there are other threads. */
void aq_malloc_arenas(int32_t most);
/* [any] In a forked child, which has one thread: closes its copies of the engines' descriptors. */
void aq_forked(void);
/* [any] SHA-256 of the SubjectPublicKeyInfo (RFC 7469 section 2.4) of the first certificate in PEM or DER, 32 bytes. */
int64_t aq_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out);
/* [any] Looks at the first `most` certificates of PEM text or DER. Returns how many there are; without any AQ_ERR_TLS,
 * and `text` says what there is in their place. */
int64_t aq_certificates_look(const uint8_t *data, size_t length, aq_certificate *out, uint32_t most, char *text,
                             size_t text_length);
uint32_t aq_counter_count(void);             /* [any] */
const char *aq_counter_name(uint32_t index); /* [any] NULL past the end */

/* ---- engine ------------------------------------------------------------------------------------------------- */

/* [any] NULL: *error says why not, such as no memory, no descriptors, or a system call that is refused. */
aq_engine *aq_engine_new(int64_t *error);

/* [engine] The event loop. Returns AQ_OK once stopped, AQ_ERR_STATE when called twice. */
int64_t aq_engine_run(aq_engine *engine);

/* [any] Closes every connection and ends aq_engine_run(). Blocked relays return with AQ_END_STOPPED, other calls with
 * AQ_ERR_STOPPED. Idempotent. */
void aq_engine_stop(aq_engine *engine);

/* [any] After aq_engine_run() has returned, or without it. Stops, waits until no other call is inside, then frees
 * everything but the engine itself: later calls on it answer AQ_ERR_STOPPED. Once. */
void aq_engine_close(aq_engine *engine);

/* [any] Frees a closed engine. Nobody may have the pointer any more. */
void aq_engine_free(aq_engine *engine);

/* [events] Up to `most` events; waits up to timeout_ms (-1: for ever). Returns their number, 0 on time-out, or
 * AQ_ERR_STOPPED once stopped and drained. */
int64_t aq_events_wait(aq_engine *engine, aq_event *events, uint32_t most, int32_t timeout_ms);

/* [any] Copies up to `count` counters, in the order of aq_counter_name(). Returns how many. */
int64_t aq_engine_counters(aq_engine *engine, uint64_t *values, uint32_t count);

/* ---- credentials -------------------------------------------------------------------------------------------- */

/* [any] Id or error; on AQ_ERR_TLS and AQ_ERR_INVALID `text` says what is wrong, without secrets; behind
 * "certificate: ", "private key: " or "certificate authorities: " where it is one of these. */
aq_id aq_credentials_new(aq_engine *engine, const aq_credentials_options *options, char *text, size_t text_length);

/* [any] Connections and endpoints that use them keep them alive. */
int64_t aq_credentials_free(aq_engine *engine, aq_id credentials);

/* ---- endpoints and connections ------------------------------------------------------------------------------ */

aq_id aq_listen(aq_engine *engine, const aq_listen_options *options); /* [any] */

/* [any] Stops accepting; with close_connections, closes those it has. */
int64_t aq_endpoint_close(aq_engine *engine, aq_id endpoint, int32_t close_connections);

/* [any] New handshakes use these credentials, old connections keep theirs. */
int64_t aq_endpoint_set_credentials(aq_engine *engine, aq_id endpoint, aq_id credentials);

aq_id aq_connect(aq_engine *engine, const aq_connect_options *options); /* [any] */

/* [any] A client's connection moves to the local address that the kernel now chooses towards its peer (RFC 9000 section
 * 9). fd: as in aq_connect_options. Returns 1 when it has moved, 0 when that address is the one it has; AQ_ERR_STATE:
 * the peer allows no migration, or not yet. Then, and without a route, it stays where it is. */
int64_t aq_connection_migrate(aq_engine *engine, aq_id connection, int32_t fd);

/* [any] Closes with an application error code. linger > 0: first waits, at most that long, until every command sent
 * with aq_connection_send() is acknowledged and the peer's program has had a moment to read it. AQ_EVENT_CLOSED
 * follows. */
int64_t aq_connection_close(aq_engine *engine, aq_id connection, uint64_t code, uint64_t linger);

/* [any] TLS keying-material exporter (RFC 8446 section 7.5); label and context are raw bytes. AQ_ERR_STATE before the
 * handshake is complete. */
int64_t aq_connection_export(aq_engine *engine, aq_id connection, const uint8_t *label, size_t label_length,
                             const uint8_t *context, size_t context_length, uint8_t *out, size_t out_length);

/* [any] One command on a unidirectional stream of its own, then FIN. At most 256 bytes. */
int64_t aq_connection_send(aq_engine *engine, aq_id connection, const uint8_t *data, size_t length);

/* [any] Sends these bytes (1 to 16) as a DATAGRAM every `interval` (a millisecond at least); 0 ends it. */
int64_t aq_connection_heartbeat(aq_engine *engine, aq_id connection, const uint8_t *data, size_t length,
                                uint64_t interval);

/* [any] After authentication: grants max_streams_uni, lets Packets in, and sets the carrier of outgoing Packets. Before
 * it a client may hold open four unidirectional streams and its Packets are dropped; a server is trusted from the
 * start, for it was verified. AQ_CARRIER_UNKNOWN is for servers, once: a client that takes DATAGRAMs alone is told from
 * one that takes streams alone by its answer to a Packet without an end. udp = 0: Packets stay out. */
int64_t aq_connection_admit(aq_engine *engine, aq_id connection, uint32_t carrier, int32_t udp);

/* [any] Sends PINGs until the peer answers; AQ_EVENT_PROBED follows within `timeout`. That begins only after `patience`
 * where nothing hints that the peer has forgotten the connection (a stateless reset, packets that can't be decrypted,
 * an ICMP error), for PINGs may be lost in an outage; and where a full congestion window holds them back. */
int64_t aq_connection_probe(aq_engine *engine, aq_id connection, uint64_t timeout, uint64_t patience);

int64_t aq_connection_info_get(aq_engine *engine, aq_id connection, aq_connection_info *info); /* [any] */

/* ---- TCP over streams --------------------------------------------------------------------------------------- */

/* Every stream that was opened here or reported by AQ_EVENT_STREAM must be relayed, attached or reset once,
 * also when its connection has ended meanwhile: what came before the end is kept for it until then. */

/* [any] Accepts on a listening TCP socket, duplicated here: each connection becomes a stream that begins with Connect
 * and its peer's address, attached at once. */
aq_id aq_listener_open(aq_engine *engine, aq_id connection, int32_t fd);
int64_t aq_listener_close(aq_engine *engine, aq_id listener); /* [any] accepts no more once this has returned */

/* [any] From now on the engine itself dials this address for the streams that the peer opens, and attaches them. What
 * does not connect within `timeout`, and everything once `valid` is over, is reported by AQ_EVENT_STREAM as without
 * this call. to NULL: no more. */
int64_t aq_connection_dial(aq_engine *engine, aq_id connection, const aq_address *to, uint64_t timeout, uint64_t valid);

/* [any] AQ_EVENT_STREAM_ENDED for attached streams from now on, at most so many a second; 0, the default: none. Their
 * ends are counted either way. With `begins` also AQ_EVENT_STREAM_BEGUN for those that the engine accepts or dials. */
int64_t aq_streams_report(aq_engine *engine, uint32_t most, int begins);

/* [any] How many bytes of what all peers have sent the engine may hold, 1 GiB at first. As it is used up windows
 * shrink; where that does not do, streams with slow readers are reset, and connections that hold the most are closed.
 */
int64_t aq_receive_memory(aq_engine *engine, uint64_t bytes);

/* [any] TCP sockets of streams that begin from now on are probed after `idle` without a word from their far end,
 * rounded up to seconds and at most 32,767 of them, and given up after about twice that time without an answer; 0, the
 * default: never. */
int64_t aq_streams_keepalive(aq_engine *engine, uint64_t idle);

/* [any] So many more workers are free to relay attached streams that turn out to move much: for each,
 * AQ_EVENT_STREAM_BULK hands over a stream with its socket. */
int64_t aq_streams_share(aq_engine *engine, uint32_t workers);

/* [any] A new bidirectional stream that begins with `header` (at most 64 bytes). It may have to wait for the peer's
 * stream credit; relaying may begin at once. AQ_ERR_LIMIT: too many wait already. */
aq_id aq_stream_open(aq_engine *engine, aq_id connection, const uint8_t *header, size_t header_length);

/* [worker] Relays between the stream and a connected TCP socket until both directions have ended. The descriptor is
 * lent and left non-blocking. Half-close passes through both ways; bytes queued at the end are still delivered after
 * this returns. The caller closes it then: that resets the TCP connection unless both directions ended in order
 * (SO_LINGER, which is set at first and taken off at an orderly end). Returns AQ_OK with `result` filled, or an error
 * when the stream is gone. */
int64_t aq_stream_relay(aq_engine *engine, aq_id stream, int32_t fd, aq_stream_result *result);

/* [any] The same, done by the engine thread; the descriptor is handed over (also on error it is closed here). */
int64_t aq_stream_attach(aq_engine *engine, aq_id stream, int32_t fd);

/* [any] RESET_STREAM and STOP_SENDING with this code, at once. */
int64_t aq_stream_reset(aq_engine *engine, aq_id stream, uint64_t code);

/* ---- UDP ---------------------------------------------------------------------------------------------------- */

/* [pump] Takes a UDP socket into the connection's service; the descriptor is duplicated. The engine reads it and
 * forwards what has an association. A public socket (server) distinguishes many sources: AQ_EVENT_SOURCE_UNKNOWN asks
 * once about each new one. A local socket (client) belongs to one association. For a public one it waits for the
 * engine thread. */
aq_id aq_udp_open(aq_engine *engine, aq_id connection, int32_t fd, int32_t is_public);
int64_t aq_udp_close(aq_engine *engine, aq_id udp); /* [pump] its associations go with it */

/* [pump] The association of a local socket goes on with another socket, connected to another address of the service:
 * `fd`, duplicated. What was sent within the last second to a service that has never answered is sent again. `prefix`
 * takes the place of the one of aq_flow_add(). Waits for the engine thread. */
int64_t aq_udp_move(aq_engine *engine, aq_id udp, int32_t fd, const uint8_t *prefix, size_t prefix_length);

/* [pump] Reads one batch from a socket that AQ_EVENT_UDP_BULK handed over. Returns the number of datagrams, 0 where it
 * is empty. */
int64_t aq_udp_receive(aq_engine *engine, aq_id udp);
/* [pump] The engine reads it again; where it can't, the pump has to go on. */
int64_t aq_udp_return(aq_engine *engine, aq_id udp);

/* [any] Whether the engine may leave sockets with much traffic to the pump (the default: it may not). */
int64_t aq_udp_share(aq_engine *engine, int32_t on);

/* [pump] The source gets no association: what waits for it is dropped and counted, and its next datagram asks again.
 * `peer` and `local` as AQ_EVENT_SOURCE_UNKNOWN gave them; local NULL: it gave none. */
int64_t aq_udp_refuse(aq_engine *engine, aq_id udp, const aq_address *peer, const aq_address *local);

/* [pump] Adds an association. public socket: `peer` and `local` are the source as AQ_EVENT_SOURCE_UNKNOWN gave it, and
 * answers leave from `local` (NULL: the kernel chooses). local socket: `peer` is the address that the Packet carried
 * (echoed back in every answer), the socket is connected to the service. `prefix` (at most 64 bytes) goes in front of
 * every datagram sent to the socket. Waiting datagrams follow at once. AQ_ERR_LIMIT: the id or the source has an
 * association already. AQ_ERR_INVALID: also a `local` for a socket that has one address only. */
int64_t aq_flow_add(aq_engine *engine, aq_id udp, uint16_t association, const aq_address *peer, const aq_address *local,
                    const uint8_t *prefix, size_t prefix_length);

/* [pump] Forgets an association, or refuses one that was wanted (its waiting packets are dropped and counted). */
int64_t aq_flow_remove(aq_engine *engine, aq_id connection, uint16_t association);

/* [pump] No new associations for an address, whatever its port, or for any where it is NULL, for so many nanoseconds:
 * what would ask for one is dropped and counted, and neither AQ_EVENT_SOURCE_UNKNOWN nor AQ_EVENT_FLOW_WANTED comes. */
int64_t aq_flows_refuse(aq_engine *engine, aq_id connection, const aq_address *from, uint64_t duration);

/* [pump] Associations without traffic for `idle`, at most `most`, in the order in which they should make room for
 * others: first the longest idle of those that were a question or two and have been answered, then the longest idle of
 * all others. `host`: only of this address, whatever its port; NULL: of any. Returns how many. */
int64_t aq_flows_idle(aq_engine *engine, aq_id connection, const aq_address *host, uint64_t idle,
                      uint16_t *associations, uint32_t most);

/* [pump] Associations whose user has sent within `recent` and has waited for an answer longer than `silence`. */
int64_t aq_flows_unanswered(aq_engine *engine, aq_id connection, uint64_t silence, uint64_t recent,
                            uint16_t *associations, uint32_t most);
