/* The one place where the handshake layer is selected. */
#include "quic/handshake.h"

const aq_handshake_ops *const aq_handshake = &aq_handshake_gnutls;
