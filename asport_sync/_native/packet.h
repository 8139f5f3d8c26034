/* The ASPORT command framing that the engine needs itself: command lengths, the Packet header, fragments. Pure
 * functions; the Python codec (wire/) is the oracle for them in the tests. ASPORT draft, "Command"; all fields big
 * endian.
 */
#ifndef AQ_PACKET_H
#define AQ_PACKET_H

#include "aq.h"

enum aq_command_type {
    AQ_COMMAND_CLIENT_HELLO = 0,
    AQ_COMMAND_SERVER_HELLO = 1,
    AQ_COMMAND_CONNECT = 2,
    AQ_COMMAND_PACKET = 3,
    AQ_COMMAND_DISSOCIATE = 4,
    AQ_COMMAND_HEARTBEAT = 5
};

#define AQ_COMMAND_MAX 55        /* longest command without payload: ClientHello */
#define AQ_PACKET_HEADER_MAX 29  /* version, type, 8 bytes, IPv6 address with port */
#define AQ_PACKET_HEADER_NONE 11 /* the same with address family None: every fragment but the first */
#define AQ_FRAGMENTS_MAX 255     /* frag_total is one byte */

/* Length of the command that starts at data, without a Packet's payload: > 0 known (it may be more than is there yet),
 * 0 more bytes are needed to tell, -1 malformed (*problem then points to a constant text). */
int aq_command_length(const uint8_t *data, size_t length, const char **problem);

typedef struct {
    uint16_t association, packet;
    uint8_t total, index; /* frag_total, frag_id */
    uint16_t size;        /* payload bytes of this fragment */
    int has_address;
    aq_address address; /* scope 0 */
    size_t header;      /* bytes before the payload */
} aq_packet_header;

/* Header of a whole Packet command: 1 decoded, 0 more bytes needed, -1 malformed. The payload need not be there. */
int aq_packet_decode(const uint8_t *data, size_t length, aq_packet_header *out, const char **problem);

#define AQ_CONNECT_MAX 21 /* version, type, IPv6 address with port */

/* Writes a Connect command. Returns its length; out has room for AQ_CONNECT_MAX. */
size_t aq_connect_encode(uint8_t *out, const aq_address *source);

/* The address of a complete Connect command; family 0 where it has none. */
void aq_connect_decode(const uint8_t *data, aq_address *source);

/* Writes the header; address NULL: family None. Returns its length; out has room for AQ_PACKET_HEADER_MAX. */
size_t aq_packet_encode(uint8_t *out, uint16_t association, uint16_t packet, uint8_t total, uint8_t index,
                        uint16_t size, const aq_address *address);

/* How `payload` bytes are cut for carriers of `limit` bytes. Returns the number of fragments (1..255), 0 when more
 * would be needed, the limit is too small for any, or the payload exceeds 65,535 bytes; *first and *rest are the
 * payload bytes of the first and of every later fragment but the last (one fragment: all and 0). */
int aq_fragment_plan(size_t limit, size_t payload, int ipv6, size_t *first, size_t *rest);

/* Puts fragments together; one per connection, [engine] only. Bounded in packets, bytes and time; what it gives up is
 * counted. */
typedef struct aq_assembler aq_assembler;

enum aq_assembly {
    AQ_ASSEMBLY_COMPLETE = 1,   /* *out is set; valid until the next call */
    AQ_ASSEMBLY_PENDING = 0,    /* kept */
    AQ_ASSEMBLY_BAD = -1,       /* frag_total 0, frag_id not below it, address rule, other frag_total than siblings */
    AQ_ASSEMBLY_DUPLICATE = -2, /* this fragment was there already */
    AQ_ASSEMBLY_TOO_BIG = -3,   /* more than 65,535 bytes together: the packet is given up */
    AQ_ASSEMBLY_MEMORY = -4     /* no memory: the packet is given up */
};

typedef struct {
    const uint8_t *payload;
    size_t length;
    aq_address address;
} aq_assembled;

/* Bounds on incomplete packets: how many (at least 1), their payload bytes together (at least 65,535, so that every
 * packet has room), and nanoseconds from a packet's first fragment on. A packet id comes again after 65,536 packets:
 * the lifetime should be shorter than a fast sender takes for that, else fragments of two packets meet. NULL: no
 * memory. */
aq_assembler *aq_assembler_new(uint32_t most_packets, size_t most_bytes, uint64_t lifetime);
void aq_assembler_free(aq_assembler *assembler);
/* A header with total == 1 completes at once without a copy. Making room drops the oldest incomplete packets; what is
 * too old by `now` goes first of all. payload holds header->size bytes, lent. */
int aq_assembler_add(aq_assembler *assembler, const aq_packet_header *header, const uint8_t *payload, uint64_t now,
                     aq_assembled *out);
void aq_assembler_forget(aq_assembler *assembler, uint16_t association); /* its incomplete packets are dropped */
/* Drops what is too old. Returns when to call again, UINT64_MAX: never. */
uint64_t aq_assembler_expire(aq_assembler *assembler, uint64_t now);
size_t aq_assembler_held(const aq_assembler *assembler);      /* bytes that incomplete packets take */
uint64_t aq_assembler_dropped(const aq_assembler *assembler); /* incomplete packets given up, for whatever cause */

#endif
