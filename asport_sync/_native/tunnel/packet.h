/* The part of the ASPORT command framing that the engine itself needs: command lengths, Packet headers, Connect
 * commands and fragments (ASPORT draft, "Command"; all fields big endian). The encoding functions are pure; tests
 * compare them with the Python codec (wire/).
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

#define AQ_COMMAND_MAX 55        /* longest command without a payload: ClientHello */
#define AQ_PACKET_HEADER_MAX 29  /* version, type, 8 bytes, IPv6 address with port */
#define AQ_PACKET_HEADER_NONE 11 /* with address family None: all fragments but the first */
#define AQ_FRAGMENTS_MAX 255     /* frag_total is one byte */

/* Returns the length of the command that starts at data, without a Packet's payload: > 0, which may exceed `length`; 0
 * if more bytes are needed to know it; -1 if it is malformed, with *problem pointing to a constant text. */
int aq_command_length(const uint8_t *data, size_t length, const char **problem);

typedef struct {
    uint16_t association, packet;
    uint8_t total, index; /* frag_total, frag_id */
    uint16_t size;        /* payload bytes of this fragment */
    int has_address;
    aq_address address; /* scope 0 */
    size_t header;      /* bytes before the payload */
} aq_packet_header;

/* Decodes the header of a Packet command; the payload need not be present. Returns 1: decoded, 0: more bytes needed,
 * -1: malformed. */
int aq_packet_decode(const uint8_t *data, size_t length, aq_packet_header *out, const char **problem);

#define AQ_CONNECT_MAX 21 /* version, type, IPv6 address with port */

/* Writes a Connect command to out, which has room for AQ_CONNECT_MAX bytes. Returns its length. */
size_t aq_connect_encode(uint8_t *out, const aq_address *source);

/* Reads the address of a complete Connect command; family 0 if it has none. */
void aq_connect_decode(const uint8_t *data, aq_address *source);

/* Writes a Packet header to out, which has room for AQ_PACKET_HEADER_MAX bytes. address NULL: family None. Returns its
 * length. */
size_t aq_packet_encode(uint8_t *out, uint16_t association, uint16_t packet, uint8_t total, uint8_t index,
                        uint16_t size, const aq_address *address);

/* Plans the fragments of `payload` bytes if each, with its header, may have `limit` bytes. Returns their number
 * (1..255); 0 if more would be needed, the limit is too small, or the payload exceeds 65,535 bytes. *first is the
 * payload size of the first fragment, *rest that of all others but the last; for a single fragment they are `payload`
 * and 0. */
int aq_fragment_plan(size_t limit, size_t payload, int ipv6, size_t *first, size_t *rest);

/* Reassembles fragments; one per connection, [engine] only. Limited in packets, bytes and time; the packets that it
 * gives up are counted. */
typedef struct aq_assembler aq_assembler;

enum aq_assembly {
    AQ_ASSEMBLY_COMPLETE = 1,   /* *out is set; valid until the next call */
    AQ_ASSEMBLY_PENDING = 0,    /* kept */
    AQ_ASSEMBLY_BAD = -1,       /* frag_id >= frag_total, address missing or unexpected, other frag_total than before */
    AQ_ASSEMBLY_DUPLICATE = -2, /* this fragment is known already */
    AQ_ASSEMBLY_TOO_BIG = -3,   /* more than 65,535 bytes in all: the packet is given up */
    AQ_ASSEMBLY_MEMORY = -4     /* no memory: the packet is given up */
};

typedef struct {
    const uint8_t *payload;
    size_t length;
    aq_address address;
} aq_assembled;

/* Creates an assembler. Arguments limit incomplete packets: their number (at least 1), their payload bytes in all (at
 * least 65,535, so that every packet has room), and their lifetime in nanoseconds from the first fragment on. Packet
 * IDs repeat after 65,536 packets. The lifetime should be shorter than the time in which a fast sender sends that many,
 * or fragments of different packets may be combined. Returns NULL if there is no memory. */
aq_assembler *aq_assembler_new(uint32_t max_packets, size_t max_bytes, uint64_t lifetime);
void aq_assembler_free(aq_assembler *assembler);
/* Adds a fragment; `payload` is lent and has header->size bytes. A packet of one fragment is complete at once and not
 * copied. Drops packets that are too old at `now` first; then, if room is needed, the oldest incomplete ones. */
int aq_assembler_add(aq_assembler *assembler, const aq_packet_header *header, const uint8_t *payload, uint64_t now,
                     aq_assembled *out);
/* Drops packets that are too old. Returns when to call again; UINT64_MAX: not needed. */
uint64_t aq_assembler_expire(aq_assembler *assembler, uint64_t now);
size_t aq_assembler_held(const aq_assembler *assembler);      /* about how many bytes incomplete packets use */
uint64_t aq_assembler_dropped(const aq_assembler *assembler); /* incomplete packets given up so far, for any reason */

#endif
