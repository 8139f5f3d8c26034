/* TCP sockets in the engine's epoll: public listeners, connections to the local service, attached sockets. Engine
 * thread only, except where noted. */
#ifndef AQ_TCP_H
#define AQ_TCP_H

#include "aq.h"
#include "engine/engine.h"

void aq_tcp_attach(aq_engine *engine, aq_stream *stream, int fd); /* takes over fd, also on failure */
void aq_tcp_serve(aq_engine *engine, aq_stream *stream);          /* moves what can be moved */
void aq_tcp_dial(aq_engine *engine, aq_stream *stream);
void aq_tcp_dial_timers(aq_engine *engine);
void aq_tcp_run_checks(aq_engine *engine); /* checks sockets whose TCP peers may be gone */
void aq_tcp_event(aq_engine *engine, aq_id id, uint32_t events);
int64_t aq_tcp_listen(aq_engine *engine, aq_listener *listener, const aq_conn *conn);
int64_t aq_tcp_listen_again(aq_engine *engine, aq_listener *listener); /* after a back-off */
void aq_tcp_unlisten(aq_engine *engine, aq_listener *listener);
void aq_tcp_accept(aq_engine *engine, aq_id id);
void aq_tcp_count_end(aq_engine *engine, const aq_stream_result *result); /* [any] */

#endif
