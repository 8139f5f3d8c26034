/* The boundary between Python and the engine: every type and function that crosses it, and nothing else.
 *
 * This text is read twice: by cffi (so there are no preprocessor lines here) and, through aq.h, by the C compiler.
 *
 * Rules of the boundary
 * - One owned pointer crosses it, the engine. Everything else is an aq_id, a value with a generation: a stale id, or an
 *   id of the wrong kind, results in AQ_ERR_GONE, never in a crash. An id is > 0 and errors are negative, so a function
 *   that creates something returns "id or error" in one number.
 * - No C thread ever enters Python. The engine posts events; aq_events_wait() returns them in batches.
 * - Functions copy their arguments unless the comment says "lent" (for the duration of the call) or "handed over" (the
 *   callee closes it).
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
    AQ_ERR_GONE = -2,     /* no object has this id (any more) */
    AQ_ERR_INVALID = -3,  /* an argument is out of range */
    AQ_ERR_MEMORY = -4,   /* out of memory */
    AQ_ERR_LIMIT = -5,    /* a table or queue is full */
    AQ_ERR_STATE = -6,    /* not possible in this state, e.g. the exporter before the handshake */
    AQ_ERR_TLS = -7,      /* GnuTLS reported an error; the text says which */
    AQ_ERR_TIMEOUT = -8,  /* nothing arrived within the given time */
    AQ_ERR_NO_TRUST = -9, /* GnuTLS's default trust store is missing or empty */
    AQ_ERR_SYSTEM = -1000 /* and below: a system call failed, errno = AQ_ERR_SYSTEM - result */
};

/* An IP address and port. family is 4 or 6; IPv4 uses the first four bytes of ip. port is in host byte order. */
typedef struct {
    uint8_t family;
    uint8_t ip[16];
    uint16_t port;
    uint32_t scope; /* IPv6 zone index, 0 if none applies */
} aq_address;

enum aq_congestion { AQ_CONGESTION_CUBIC = 0, AQ_CONGESTION_RENO = 1, AQ_CONGESTION_BBR = 2 };

/* How UDP payloads travel to the peer. UNKNOWN only in aq_connection_set_joined(): the engine finds out what the peer
 * accepts, and Packets wait until then. */
enum aq_carrier { AQ_CARRIER_DATAGRAM = 0, AQ_CARRIER_STREAM = 1, AQ_CARRIER_UNKNOWN = 2 };

enum aq_event_type {
    /* The handshake is complete; peer, data = ALPN protocol. On a server, the first event of a connection. */
    AQ_EVENT_CONNECTED = 1,
    /* The last event of a connection; code = aq_close_cause, value = error code, data = reason phrase, totals. */
    AQ_EVENT_CLOSED = 2,
    /* A complete command without payload; data = its bytes, and after a ClientHello the next byte of its stream, if
     * there is one; value = aq_carrier. On a server, Heartbeats in DATAGRAMs are only counted. */
    AQ_EVENT_COMMAND_RECEIVED = 3,
    /* The peer broke the framing rules; data = description as text. The bytes were dropped. */
    AQ_EVENT_VIOLATION = 4,
    /* The peer opened a bidirectional stream; data = its complete Connect command. */
    AQ_EVENT_STREAM_OPENED = 5,
    /* An attached stream has ended; peer, result, code = its duration in nanoseconds, value = number of ends not
     * reported since the previous event. */
    AQ_EVENT_STREAM_ENDED = 6,
    /* A Packet for an unknown association; value = id, peer = its address. The payload waits. */
    AQ_EVENT_ASSOCIATION_WANTED = 7,
    /* The result of aq_connection_probe(); value = 1 alive, 0 silent. */
    AQ_EVENT_PROBED = 8,
    /* code = severity as in Python's logging (10 debug .. 40 error), data = text. */
    AQ_EVENT_LOG_RECORD = 9,
    /* A public UDP socket has datagrams from a source without association; socket, peer, local. They wait. */
    AQ_EVENT_SOURCE_UNKNOWN = 10,
    /* A listener could not accept connections; socket, code = errno: it backs off (EDQUOT: its port has its fair share
     * of descriptors). code 0: connections were dropped because too many streams wait for the peer's stream credit, or
     * for lack of memory. At most once a second for each listener. */
    AQ_EVENT_ACCEPT_FAILED = 11,
    /* A worker should relay this stream; peer, code = its duration so far in nanoseconds, value = its socket, handed
     * over: see aq_descriptor_taken(). */
    AQ_EVENT_STREAM_LARGE_TRANSFER = 12,
    /* The pump should read this UDP socket from now on; socket. */
    AQ_EVENT_UDP_LARGE_TRANSFER = 13,
    /* value = 1: no packet from the peer for aq_transport_options.silence, or a hint that it is gone; 0: packets arrive
     * again. */
    AQ_EVENT_SILENCE = 14,
    /* The service of a local UDP socket does not accept datagrams; socket, code = errno, value = 1: it has answered
     * before. At most once a second until aq_udp_move(). */
    AQ_EVENT_UDP_REFUSED = 15,
    /* An accepted TCP connection has its stream, or a dialled one is established; peer. */
    AQ_EVENT_STREAM_BEGUN = 16,
    /* A UDP association has ended; value = its id, peer = its address, code = its duration in nanoseconds, result: the
     * bytes of payload, and AQ_END_CONNECTION if its connection has ended, else AQ_END_FINISHED. */
    AQ_EVENT_ASSOCIATION_ENDED = 17,
    /* Visitors were refused; code = aq_refused_by, value = their number since the previous event (datagrams or Packets
     * with AQ_REFUSED_BY_UDP_RULES), peer = the address of the latest, family 0: unknown. At most once a second for
     * each connection or group, and reason. */
    AQ_EVENT_VISITORS_REFUSED = 18
};

/* Why visitors are refused, see aq_connection_limit(). */
enum aq_refused_by {
    AQ_REFUSED_BY_TCP_RULES = 0,       /* TCP from an address that is not permitted */
    AQ_REFUSED_BY_UDP_RULES = 1,       /* UDP likewise */
    AQ_REFUSED_BY_MAX_CONNECTIONS = 2, /* max_connections are open */
    AQ_REFUSED_BY_RATE = 3             /* more than max_new in a second */
};

/* Which connection of a group a visitor is given to. */
enum aq_balance {
    AQ_BALANCE_ROUND_ROBIN = 0,      /* the one that was given none for longest */
    AQ_BALANCE_LEAST_CONNECTIONS = 1 /* the one with the fewest: TCP connections for TCP, sources for UDP */
};

/* Direction of payload, as this side sees it: read from sockets and sent to the peer, or the other way. */
enum aq_direction { AQ_DIRECTION_SENT = 0, AQ_DIRECTION_RECEIVED = 1 };

typedef struct {
    uint64_t rate;    /* bytes per second; 0: no limit */
    uint64_t waits;   /* how often a stream has waited for it */
    uint64_t dropped; /* datagrams dropped */
} aq_bucket_info;

/* Why a connection ended. */
enum aq_close_cause {
    AQ_CLOSE_LOCAL = 1,             /* aq_connection_close() was called here */
    AQ_CLOSE_PEER_APPLICATION = 2,  /* CONNECTION_CLOSE of type 0x1d; value = application error code */
    AQ_CLOSE_PEER_TRANSPORT = 3,    /* CONNECTION_CLOSE of type 0x1c; value = transport error code */
    AQ_CLOSE_IDLE = 4,              /* idle timeout */
    AQ_CLOSE_HANDSHAKE_TIMEOUT = 5, /* the QUIC handshake took longer than handshake_timeout */
    AQ_CLOSE_STATELESS_RESET = 6,   /* the peer has no state for this connection */
    AQ_CLOSE_TLS = 7,               /* TLS failed on this side; value = alert */
    AQ_CLOSE_CERTIFICATE = 8,       /* the peer's certificate was rejected here; data says why */
    AQ_CLOSE_INTERNAL = 9,     /* an error in the engine, the library or memory allocation; value = ngtcp2's code */
    AQ_CLOSE_VERSION = 10,     /* no common QUIC version */
    AQ_CLOSE_UNREACHABLE = 11, /* the network reports that the peer is unreachable (only during the handshake) */
    AQ_CLOSE_PEER_FAULT = 12   /* the peer violated QUIC; value = the transport error code sent to it */
};

/* Stream error code for aq_stream_reset(), for a stream that will not be relayed. */
enum aq_stream_code { AQ_STREAM_REFUSED = 2 };

/* How a relayed or attached stream ended. */
enum aq_stream_end {
    AQ_END_FINISHED = 0,     /* both directions ended in order, nothing was lost */
    AQ_END_PEER_RESET = 1,   /* the QUIC peer reset the stream */
    AQ_END_SOCKET_ERROR = 2, /* the TCP socket failed; error = errno */
    AQ_END_CONNECTION = 3,   /* the QUIC connection ended */
    AQ_END_LOCAL_RESET = 4,  /* aq_stream_reset() was called here */
    AQ_END_STOPPED = 5       /* the engine stopped */
};

typedef struct {
    uint64_t sent;     /* bytes taken from the TCP socket */
    uint64_t received; /* bytes written to the TCP socket */
    uint32_t end;      /* aq_stream_end */
    int32_t error;     /* errno with AQ_END_SOCKET_ERROR, the peer's stream error code with AQ_END_PEER_RESET, else 0 */
} aq_stream_result;

/* What a connection has moved since its beginning. */
typedef struct {
    uint64_t packets_sent, packets_received, bytes_sent, bytes_received; /* UDP datagrams that carried QUIC */
    uint64_t packets_lost, bytes_lost; /* declared lost by recovery; 0 with ngtcp2 before 1.16, which does not count */
    uint64_t streams_total;            /* TCP connections so far: accepted (server), or to be dialled (client) */
    /* Bytes of TCP and UDP payload taken from sockets, and handed to them, on this side of the connection. What is
     * handed to them after the end of the connection is not counted. */
    uint64_t payload_sent, payload_received;
} aq_connection_totals;

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
    /* With AQ_EVENT_SOURCE_UNKNOWN: the address that peer sent to, port 0; family 0: not needed. */
    aq_address local;
    aq_stream_result result;
    aq_connection_totals totals; /* with AQ_EVENT_CLOSED */
    uint8_t data[256];
} aq_event;

/* The properties of a certificate that decide whether clients accept it from a server. */
typedef struct {
    int64_t not_before; /* seconds since 1970, UTC */
    int64_t not_after;
    int32_t names;  /* 1: subjectAltName has a DNS name or an IP address */
    int32_t signs;  /* 1: the key may sign a handshake: keyUsage is absent or has digitalSignature */
    int32_t serves; /* 1: TLS servers may use it: extendedKeyUsage is absent or has serverAuth */
    int32_t strong; /* 1: the key is long enough for peers that use this engine */
    int32_t sealed; /* 1: signed with an algorithm that peers using this engine accept, or self-issued */
} aq_certificate;

typedef struct {
    int32_t server;             /* 1: server credentials, certificate and key required */
    int32_t verify;             /* client: verify chain and name; 0 only on explicit request */
    int32_t system_trust;       /* client: trust GnuTLS's default store; AQ_ERR_NO_TRUST if it has no authority */
    const uint8_t *certificate; /* server: PEM chain or one DER certificate */
    size_t certificate_length;
    const uint8_t *private_key; /* server: PEM or DER; PKCS#8, PKCS#1 or SEC1 */
    size_t private_key_length;
    const uint8_t *trust; /* client: additional authorities, PEM bundle or one DER certificate; length 0: none */
    size_t trust_length;
    /* Client: pins from aq_certificate_pin(), 32 bytes each. The key of the server's own certificate must match one of
     * them, even with verify 0; length 0: any key. */
    const uint8_t *pins;
    size_t pins_length;
    const uint8_t *alpn; /* protocols as in the TLS extension: each a length byte and its bytes */
    size_t alpn_length;
    const char *keylog_path; /* file for NSS key log lines, or NULL */
} aq_credentials_options;

typedef struct {
    uint32_t congestion;        /* aq_congestion */
    uint32_t max_udp_payload;   /* 1200..65527: upper bound of the path MTU search, in bytes of UDP payload */
    uint64_t idle_timeout;      /* advertised max_idle_timeout; 0: none */
    uint64_t keep_alive;        /* interval without packets after which a PING is sent; 0: never */
    uint64_t silence;           /* AQ_EVENT_SILENCE after this time plus a probe timeout; 0: never */
    uint64_t handshake_timeout; /* maximum duration of the QUIC handshake */
    uint64_t command_timeout;   /* maximum time until a stream's command is complete */
    uint64_t send_window;       /* bytes queued and unacknowledged per stream */
    uint64_t receive_window;    /* maximum flow-control window of a stream */
    uint64_t connection_window; /* maximum connection window: bounds bytes received and not consumed */
    uint64_t datagram_queue;    /* maximum bytes of UDP packets waiting to be sent; beyond it the oldest are dropped */
    uint64_t fragment_lifetime; /* time after which an incomplete Packet is dropped */
    uint32_t max_streams_bidi;  /* bidirectional streams that the peer may have open */
    uint32_t max_streams_uni;   /* unidirectional streams that the peer may have open, once authenticated */
    uint32_t max_pending_streams; /* maximum number of streams waiting for the peer's stream credit */
    int32_t gso;                  /* 1: UDP segmentation offload if the kernel supports it */
    int32_t datagrams;            /* 1: accept DATAGRAM frames (RFC 9221) */
} aq_transport_options;

typedef struct {
    int32_t fd; /* bound UDP socket; duplicated, the caller closes its own */
    aq_id credentials;
    aq_transport_options transport;
    /* Key of stateless reset tokens. Keeping it across a restart lets peers detect the restart immediately. */
    uint8_t reset_key[32];
    /* A half-open connection is one whose client is unauthenticated. */
    uint32_t retry_threshold; /* half-open connections from which every client must prove its address by Retry */
    uint32_t max_half_open;   /* maximum number of half-open connections; more are refused */
    uint32_t max_half_open_per_source; /* the same per IPv4 address or IPv6 /64, counting validated addresses only */
    uint32_t max_connections;          /* maximum number of all connections; more are refused */
} aq_listen_options;

typedef struct {
    int32_t fd; /* unconnected UDP socket, may be unbound; duplicated, the caller closes its own */
    aq_id credentials;
    aq_address remote;
    const char *server_name; /* name or IP literal that the certificate must match */
    int32_t send_sni;        /* 1: send server_name as SNI unless it is an IP literal */
    aq_transport_options transport;
} aq_connect_options;

typedef struct {
    aq_address peer;
    uint64_t smoothed_rtt, min_rtt, latest_rtt;  /* nanoseconds */
    uint64_t congestion_window, bytes_in_flight; /* bytes */
    uint64_t path_payload;                       /* current maximum UDP payload size */
    uint64_t datagram_limit;                     /* current maximum DATAGRAM payload */
    uint64_t silence;                            /* nanoseconds since the last packet from the peer */
    uint64_t idle_timeout;     /* nanoseconds, the minimum of both sides (RFC 9000 section 10.1); 0: none */
    uint64_t keep_alive;       /* nanoseconds between keep-alive probes; 0: none */
    uint64_t streams;          /* open bidirectional streams */
    uint64_t relays;           /* the same, and those whose data is received but not written to TCP yet */
    uint64_t associations;     /* UDP associations */
    uint64_t datagrams_queued; /* bytes of UDP packets waiting to be sent */
    aq_connection_totals totals;
} aq_connection_info;

/* A range of IP addresses, both ends included. family is 4 or 6; IPv4 uses the first four bytes. */
typedef struct {
    uint8_t family;
    uint8_t first[16], last[16];
} aq_address_range;

/* What a public port (server) or a tunnel (client) grants its visitors. All zero: everything. */
typedef struct {
    /* 1: only visitors from `permitted` are served. IPv4 comes first; the ranges of a family are ascending and do not
     * overlap. IPv4-mapped addresses count as IPv4. */
    int32_t restricted;
    int32_t unknown_permitted; /* 1: with `restricted`, also visitors whose address the peer does not tell */
    const aq_address_range *permitted;
    uint32_t permitted_length; /* at most 32768 */
    uint32_t max_connections;  /* open TCP connections; 0: no limit */
    uint32_t max_new;          /* new TCP connections per second, and at once; 0: no limit */
} aq_visitor_limits;

/* ---- library ------------------------------------------------------------------------------------------------ */

const char *aq_build_id(void);       /* [any] package version and hash of this header */
const char *aq_ngtcp2_version(void); /* [any] version of ngtcp2 at run time */
/* [any] Returns "bundled", "bundled, adjusted" (vendor/adjustments.py), "system", or "system, fallback" if the build
 * was not configured for the system's library but could not obtain another. */
const char *aq_ngtcp2_origin(void);
const char *aq_gnutls_version(void);                                 /* [any] */
const char *aq_strerror(int64_t error, char *buffer, size_t length); /* [any] fills and returns buffer */
/* [any] Returns 1 if two secrets are equal, else 0, in time that depends only on their length. */
int32_t aq_equal(const uint8_t *first, const uint8_t *second, size_t length);
/* [any] Derives 32 bytes by HKDF (RFC 5869) with SHA-256. */
int64_t aq_derive_key(const uint8_t *secret, size_t secret_length, const uint8_t *salt, size_t salt_length,
                      const uint8_t *info, size_t info_length, uint8_t *out);
/* [any] Returns a descriptor, owned by the caller, that becomes readable when the system clock jumps, as it does when
 * the machine resumes. Reading it then fails with ECANCELED and rearms it. */
int64_t aq_clock_watch(void);
/* [any] Limits malloc() to `max` arenas, if the C library is glibc. Call before other threads exist. */
void aq_malloc_arenas(int32_t max);
/* [any] In a forked child, which has one thread: closes its copies of the engines' descriptors. */
void aq_forked(void);
/* [any] Python owns this descriptor now, closes it, and does so in a forked child too. */
void aq_descriptor_taken(int32_t fd);
/* [any] Computes the SHA-256 of the SubjectPublicKeyInfo (RFC 7469 section 2.4) of the first certificate in PEM or DER,
 * 32 bytes. */
int64_t aq_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out);
/* [any] Examines the first `max` certificates of PEM text or DER. Returns how many there are in total; AQ_ERR_TLS if
 * there are none, and `text` says what was found instead. */
int64_t aq_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                             size_t text_length);
/* What a counter of the engine counts. Immutable, as long as the process lives. */
typedef struct {
    const char *name;
    const char *unit;    /* "bytes", "datagrams", "packets", "fragments", or "" */
    const char *help;    /* one sentence */
    int32_t counts_drop; /* 1: what was not passed on */
} aq_counter_description;
uint32_t aq_counter_count(void);                                   /* [any] */
const aq_counter_description *aq_counter_describe(uint32_t index); /* [any] NULL past the end */

/* ---- engine ------------------------------------------------------------------------------------------------- */

/* [any] Returns NULL on failure; *error says why, such as no memory, no descriptors, or a refused system call. */
aq_engine *aq_engine_new(int64_t *error);

/* [engine] Runs the event loop. Returns AQ_OK once stopped, AQ_ERR_STATE when called twice. */
int64_t aq_engine_run(aq_engine *engine);

/* [any] Closes every connection and ends aq_engine_run(). Blocked relays return with AQ_END_STOPPED, other calls with
 * AQ_ERR_STOPPED. Idempotent. */
void aq_engine_stop(aq_engine *engine);

/* [any] Call once, after aq_engine_run() has returned, or if it was never called. Stops, waits until no other call is
 * inside, then frees everything but the engine itself: later calls on it return AQ_ERR_STOPPED. */
void aq_engine_close(aq_engine *engine);

/* [any] Frees a closed engine. No thread may use the pointer any more. */
void aq_engine_free(aq_engine *engine);

/* [events] Takes up to `max` events; waits up to timeout_ms (-1: indefinitely). Returns their number, 0 on timeout, or
 * AQ_ERR_STOPPED once stopped and drained. */
int64_t aq_events_wait(aq_engine *engine, aq_event *events, uint32_t max, int32_t timeout_ms);

/* [any] Ends the current aq_events_wait(), or else the next one, even without an event. */
int64_t aq_events_wake(aq_engine *engine);

/* [any] Copies up to `count` counters, in the order of aq_counter_describe(). Returns how many. */
int64_t aq_engine_counters(aq_engine *engine, uint64_t *values, uint32_t count);

/* ---- credentials -------------------------------------------------------------------------------------------- */

/* [any] Returns an id or an error. On AQ_ERR_TLS, AQ_ERR_NO_TRUST and AQ_ERR_INVALID `text` describes the problem
 * without secrets, prefixed with "certificate: ", "private key: " or "certificate authorities: " if it concerns one of
 * these. */
aq_id aq_credentials_new(aq_engine *engine, const aq_credentials_options *options, char *text, size_t text_length);

/* [any] Releases the id. Connections and endpoints that use the credentials keep them alive. */
int64_t aq_credentials_free(aq_engine *engine, aq_id credentials);

/* ---- endpoints and connections ------------------------------------------------------------------------------ */

aq_id aq_listen(aq_engine *engine, const aq_listen_options *options); /* [any] */

/* [any] Stops accepting; with close_connections, also closes the endpoint's connections. */
int64_t aq_endpoint_close(aq_engine *engine, aq_id endpoint, int32_t close_connections);

/* [any] New handshakes use these credentials, existing connections keep theirs. */
int64_t aq_endpoint_set_credentials(aq_engine *engine, aq_id endpoint, aq_id credentials);

/* [any] New connections use these settings, existing ones keep theirs. */
int64_t aq_endpoint_set_transport(aq_engine *engine, aq_id endpoint, const aq_transport_options *options);

/* [any] Changes max_connections of aq_listen_options. Existing connections stay. */
int64_t aq_endpoint_limit(aq_engine *engine, aq_id endpoint, uint32_t max_connections);

aq_id aq_connect(aq_engine *engine, const aq_connect_options *options); /* [any] */

/* [any] Migrates a client's connection to the local address that the kernel now chooses for its peer (RFC 9000 section
 * 9). fd: as in aq_connect_options. Returns 1 after migrating, 0 if that address is the current one, AQ_ERR_STATE if
 * the peer does not allow migration (yet). On an error, also without a route, the connection stays where it is. */
int64_t aq_connection_migrate(aq_engine *engine, aq_id connection, int32_t fd);

/* [any] Closes with an application error code. UINT64_MAX: without one, the peer gets the transport error code NO_ERROR
 * (RFC 9000 section 20.1). linger > 0: first waits, at most that long, until every command sent with
 * aq_connection_send() is acknowledged and the peer's program has had a moment to read it. AQ_EVENT_CLOSED follows. */
int64_t aq_connection_close(aq_engine *engine, aq_id connection, uint64_t code, uint64_t linger);

/* [any] TLS keying material exporter (RFC 8446 section 7.5); label and context are raw bytes. AQ_ERR_STATE before the
 * handshake is complete. */
int64_t aq_connection_export(aq_engine *engine, aq_id connection, const uint8_t *label, size_t label_length,
                             const uint8_t *context, size_t context_length, uint8_t *out, size_t out_length);

/* [any] Copies the certificates that the peer sent in the handshake, as DER one after the other, its own first. Returns
 * the length of all; if that is above out_length, out is incomplete. 0: it sent none, as a client. AQ_ERR_STATE before
 * the handshake is complete. They are untrusted unless the connection's credentials verify. */
int64_t aq_connection_peer_chain(aq_engine *engine, aq_id connection, uint8_t *out, size_t out_length);

/* [any] Sends one command on its own unidirectional stream, then FIN. At most 256 bytes. */
int64_t aq_connection_send(aq_engine *engine, aq_id connection, const uint8_t *data, size_t length);

/* [any] Sends these bytes (1 to 16) as a DATAGRAM every `interval` (at least a millisecond); 0 stops it. */
int64_t aq_connection_heartbeat(aq_engine *engine, aq_id connection, const uint8_t *data, size_t length,
                                uint64_t interval);

/* [any] Call after authentication: grants max_streams_uni, admits Packets, and sets the carrier of outgoing Packets.
 * Before it, a client may have four unidirectional streams open and its Packets are dropped; a server is trusted from
 * the start, since it was verified. AQ_CARRIER_UNKNOWN is for servers, once: the client's response to an unfinished
 * Packet shows whether it accepts only DATAGRAMs or only streams. udp = 0: Packets stay blocked. */
int64_t aq_connection_set_joined(aq_engine *engine, aq_id connection, uint32_t carrier, int32_t udp);

/* [any] Sends PINGs until the peer answers; AQ_EVENT_PROBED follows on an answer, or after `timeout` without one. PINGs
 * may be lost in an outage, so `timeout` starts only after `grace_period` unless something suggests that the peer has
 * lost the connection (a stateless reset, undecryptable packets, an ICMP error). The same holds while a full congestion
 * window holds the PINGs back. */
int64_t aq_connection_probe(aq_engine *engine, aq_id connection, uint64_t timeout, uint64_t grace_period);

int64_t aq_connection_info_get(aq_engine *engine, aq_id connection, aq_connection_info *info); /* [any] */

/* [any] Sets what visitors of the connection's public port, or of its tunnel, are granted; initially everything. TCP
 * connections beyond it are reset before anything is forwarded, UDP datagrams and Packets dropped before there is an
 * association, and AQ_EVENT_VISITORS_REFUSED follows. TCP connections that are open and no longer permitted are reset;
 * aq_associations_refused() lists such associations. Waits for the engine thread. AQ_ERR_INVALID: the ranges are not as
 * described. */
int64_t aq_connection_limit(aq_engine *engine, aq_id connection, const aq_visitor_limits *limits);

/* A group: connections that share a public port. Each has a listener and a public UDP socket of its own, opened on the
 * same two sockets; visitors are spread over them by aq_balance. A member whose peer has answered nothing for a second
 * since it was given a visitor, or grants no stream credit, gets visitors only if all others are no better. A UDP
 * source stays where it is as long as it has an association. aq_connection_limit() applies to all members together: TCP
 * connections are counted together, and the latest call counts. The engine always reads a group's UDP sockets. */
aq_id aq_group_open(aq_engine *engine, uint32_t balance);                   /* [any] */
int64_t aq_group_balance(aq_engine *engine, aq_id group, uint32_t balance); /* [any] changes the policy */
int64_t aq_group_close(aq_engine *engine, aq_id group);                     /* [any] its connections keep it */
/* [any] Makes a connection a member until its end. Call before the listener and the UDP socket are opened.
 * AQ_ERR_STATE: it is in a group already. */
int64_t aq_connection_join(aq_engine *engine, aq_id connection, aq_id group);

/* ---- TCP over streams --------------------------------------------------------------------------------------- */

/* Every stream that was opened here or reported by AQ_EVENT_STREAM_OPENED must be relayed, attached or reset once, even
 * if its connection has ended meanwhile: data received before the end is kept for it until then. */

/* [any] Accepts on a listening TCP socket, which is duplicated: each connection becomes a stream that begins with
 * Connect and the TCP peer's address, and is attached immediately. With for_workers, AQ_EVENT_STREAM_LARGE_TRANSFER
 * follows immediately instead, as long as a worker is free. */
aq_id aq_listener_open(aq_engine *engine, aq_id connection, int32_t fd, int32_t for_workers);
int64_t aq_listener_close(aq_engine *engine, aq_id listener); /* [any] nothing is accepted after this returns */

/* [any] From now on the engine itself dials this address for streams that the peer opens, and attaches them. Streams
 * whose dial does not complete within `timeout`, and all streams after `valid` has elapsed, are reported by
 * AQ_EVENT_STREAM_OPENED as without this call. to NULL: stops dialling. */
int64_t aq_connection_dial(aq_engine *engine, aq_id connection, const aq_address *to, uint64_t timeout, uint64_t valid);

/* [any] Reports ends of attached streams by AQ_EVENT_STREAM_ENDED from now on, at most `max` per second; 0, the
 * default: none. Ends are counted in any case. With `begins`, also posts AQ_EVENT_STREAM_BEGUN for streams that the
 * engine accepts or dials. */
int64_t aq_streams_report(aq_engine *engine, uint32_t max, int begins);

/* [any] Reports ends of UDP associations by AQ_EVENT_ASSOCIATION_ENDED from now on (default: no). */
int64_t aq_associations_report(aq_engine *engine, int32_t on);

/* [any] Sets the receive budget: the bytes received from all peers that the engine may hold, initially 1 GiB. As it is
 * used up, windows shrink; if that is not enough, streams with slow readers are reset and the connections that hold the
 * most are closed. */
int64_t aq_receive_memory(aq_engine *engine, uint64_t bytes);

/* [any] Sets TCP keepalive for streams created from now on: their TCP sockets are probed after `idle` without packets
 * from the TCP peer, and given up after about twice that time without an answer. `idle` is rounded up to seconds, at
 * most 32,767; 0, the default: no probes. */
int64_t aq_streams_keepalive(aq_engine *engine, uint64_t idle);

/* [any] Adds `workers` free workers for attached streams that turn out to be large transfers:
 * AQ_EVENT_STREAM_LARGE_TRANSFER hands over one stream with its socket for each. */
int64_t aq_streams_share(aq_engine *engine, uint32_t workers);

/* [any] Opens a bidirectional stream that begins with `header` (at most 64 bytes). It may have to wait for the peer's
 * stream credit; relaying may begin immediately. AQ_ERR_LIMIT: too many streams wait already. */
aq_id aq_stream_open(aq_engine *engine, aq_id connection, const uint8_t *header, size_t header_length);

/* [worker] Relays between the stream and a connected TCP socket until both directions have ended. The descriptor is
 * lent and left non-blocking. Half-close passes through in both directions; bytes queued at the end are still delivered
 * after this returns. The caller then closes the descriptor: that resets the TCP connection unless both directions
 * ended in order (SO_LINGER is set first and cleared at an orderly end). Returns AQ_OK with `result` filled in, or an
 * error if the stream is gone. */
int64_t aq_stream_relay(aq_engine *engine, aq_id stream, int32_t fd, aq_stream_result *result);

/* [any] The same, done by the engine thread. The descriptor is handed over: it is closed here even on error. */
int64_t aq_stream_attach(aq_engine *engine, aq_id stream, int32_t fd);

/* [any] Sends RESET_STREAM and STOP_SENDING with this code immediately. */
int64_t aq_stream_reset(aq_engine *engine, aq_id stream, uint64_t code);

/* ---- bandwidth limits ---------------------------------------------------------------------------------------- */

/* A token bucket limits the payload (bytes of TCP and UDP, without what QUIC adds) of all connections that it is given
 * to, together, to `rate` bytes per second, at most 12,500,000,000; 0: no limit, until aq_bucket_rate() sets one. Short
 * bursts may be 10 ms of the rate, or 16 KiB, longer; bursts of datagrams 40 ms more. Streams wait, datagrams are
 * dropped and counted. */
aq_id aq_bucket_open(aq_engine *engine, uint64_t rate);                            /* [any] */
int64_t aq_bucket_rate(aq_engine *engine, aq_id bucket, uint64_t rate);            /* [any] changes it */
int64_t aq_bucket_info_get(aq_engine *engine, aq_id bucket, aq_bucket_info *info); /* [any] */
int64_t aq_bucket_close(aq_engine *engine, aq_id bucket); /* [any] connections that have it keep it */

/* [any] Gives a bucket to a connection for its payload in one direction (aq_direction), from now on and until its end;
 * also for existing streams and associations. AQ_ERR_LIMIT: it has two other ones already. */
int64_t aq_connection_bucket(aq_engine *engine, aq_id connection, aq_id bucket, uint32_t direction);

/* ---- UDP ---------------------------------------------------------------------------------------------------- */

/* [pump] Adds a UDP socket to the connection; the descriptor is duplicated. The engine reads it and forwards datagrams
 * that have an association. A public socket (server) has many sources: AQ_EVENT_SOURCE_UNKNOWN asks once about each new
 * one. A local socket (client) belongs to one association. Waits for the engine thread if the socket is public. With
 * for_pump the engine never reads it: the pump calls aq_udp_receive() from the beginning. */
aq_id aq_udp_open(aq_engine *engine, aq_id connection, int32_t fd, int32_t is_public, int32_t for_pump);
int64_t aq_udp_close(aq_engine *engine, aq_id udp); /* [pump] also removes its associations */

/* [pump] The association of a local socket continues on another socket, `fd`, connected to another address of the
 * service; duplicated. What was sent within the last second to a service that has never answered is sent again.
 * `prefix` replaces that of aq_association_add(). Waits for the engine thread. */
int64_t aq_udp_move(aq_engine *engine, aq_id udp, int32_t fd, const uint8_t *prefix, size_t prefix_length);

/* [pump] Reads one batch from a socket left to the pump by AQ_EVENT_UDP_LARGE_TRANSFER. Returns the number of
 * datagrams, 0 if it is empty. */
int64_t aq_udp_receive(aq_engine *engine, aq_id udp);
/* [pump] Returns the socket to the engine. On an error the pump must go on reading it. */
int64_t aq_udp_return(aq_engine *engine, aq_id udp);

/* [any] Whether the engine may leave busy sockets to the pump (default: no). */
int64_t aq_udp_share(aq_engine *engine, int32_t on);

/* [pump] Refuses an association to the source: its waiting datagrams are dropped and counted, and its next datagram
 * asks again. `peer` and `local` as given by AQ_EVENT_SOURCE_UNKNOWN; local NULL: it gave none. */
int64_t aq_udp_refuse(aq_engine *engine, aq_id udp, const aq_address *peer, const aq_address *local);

/* [pump] Adds an association. Public socket: `peer` and `local` are the source as given by AQ_EVENT_SOURCE_UNKNOWN, and
 * answers leave from `local` (NULL: the kernel chooses). Local socket: `peer` is the address in the Packet (echoed in
 * every answer), and the socket is connected to the service. `prefix` (at most 64 bytes) precedes every datagram sent
 * to the socket. Waiting datagrams follow immediately. AQ_ERR_LIMIT: the id or the source already has an association.
 * AQ_ERR_INVALID: also a `local` for a socket that has only one address. AQ_ERR_STATE: aq_connection_limit() does not
 * permit the visitor. */
int64_t aq_association_add(aq_engine *engine, aq_id udp, uint16_t association, const aq_address *peer,
                           const aq_address *local, const uint8_t *prefix, size_t prefix_length);

/* [pump] Removes an association, or refuses a requested one (its waiting packets are dropped and counted). */
int64_t aq_association_remove(aq_engine *engine, aq_id connection, uint16_t association);

/* [pump] Refuses new associations for an address, whatever its port (NULL: for all addresses), for `duration`.
 * Datagrams and Packets that would need one are dropped and counted, without AQ_EVENT_SOURCE_UNKNOWN or
 * AQ_EVENT_ASSOCIATION_WANTED. */
int64_t aq_associations_refuse(aq_engine *engine, aq_id connection, const aq_address *from, uint64_t duration);

/* [pump] Lists at most `max` associations that have been idle for `idle`, in the order of eviction: first the longest
 * idle of those that were short exchanges (at most four packets) and have been answered, then the longest idle of all
 * others. `host`: only those of this address, whatever its port; NULL: all. Returns how many. */
int64_t aq_associations_idle(aq_engine *engine, aq_id connection, const aq_address *host, uint64_t idle,
                             uint16_t *associations, uint32_t max);

/* [pump] Lists associations of visitors that aq_connection_limit() does not permit any more. Returns how many. */
int64_t aq_associations_refused(aq_engine *engine, aq_id connection, uint16_t *associations, uint32_t max);

/* [pump] Lists associations whose visitor has sent within `recent` and has waited for an answer longer than `silence`.
 * Returns how many. */
int64_t aq_associations_unanswered(aq_engine *engine, aq_id connection, uint64_t silence, uint64_t recent,
                                   uint16_t *associations, uint32_t max);
