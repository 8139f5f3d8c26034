/* What the raw peer does to its TLS handshake (raw_tls.c). */
#ifndef RAW_TLS_H
#define RAW_TLS_H

#include "raw_protection.h"

enum raw_parameters { RAW_PARAMETERS_GOOD, RAW_PARAMETERS_NONE, RAW_PARAMETERS_CHANGED, RAW_PARAMETERS_OWN };

typedef struct {
    enum raw_parameters parameters; /* the transport parameters: with some bytes changed, or bytes of the input */
    int hello_retry;                /* makes a HelloRetryRequest necessary */
    int asks;                       /* a server asks for a certificate */
    int meddles;                    /* the input says what happens to each message */
    int crowded;                    /* everything that is to go at one level goes in one CRYPTO frame */
    fuzz_input *input;
} raw_tls_plan;

/* Read when raw_begin() is called. */
extern raw_tls_plan raw_tls;

/* The peer's packets have the next keys from now on (RFC 9001 section 6). */
void raw_update_keys(void);
/* A handshake message with a made-up body, from the input. */
void raw_message(fuzz_input *input);

#endif
