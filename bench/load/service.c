#include "service.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKLOG 65535
#define PORT_TRIES 50

static struct service service;

/* Both sockets on one port number. Where the number is free to choose, another one is tried until UDP has it too. */
static uint16_t bind_both(const struct address *wanted)
{
    struct address address;
    int on = 1;
    int tries;
    for (tries = 0; tries < PORT_TRIES; tries++) {
        address = *wanted;
        service.listener = socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        service.datagrams = socket(address.storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (service.listener < 0 || service.datagrams < 0)
            fail("no socket: %s", strerror(errno));
        setsockopt(service.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        /* What is accepted inherits it. */
        setsockopt(service.listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (bind(service.listener, (struct sockaddr *)&address.storage, address.length) == 0 &&
            listen(service.listener, BACKLOG) == 0 &&
            getsockname(service.listener, (struct sockaddr *)&address.storage, &address.length) == 0 &&
            bind(service.datagrams, (struct sockaddr *)&address.storage, address.length) == 0)
            return address_port(&address);
        if (address_port(wanted) != 0 || errno != EADDRINUSE)
            break;
        close(service.listener);
        close(service.datagrams);
    }
    fail("cannot bind: %s", strerror(errno));
}

static void start_workers(void)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = NULL};
    int at;
    for (at = 0; at < WORKERS; at++) {
        service.workers[at].service = &service;
        service.workers[at].poller = epoll_create1(EPOLL_CLOEXEC);
        if (epoll_ctl(service.workers[at].poller, EPOLL_CTL_ADD, service.listener, &event) != 0)
            fail("epoll: %s", strerror(errno));
    }
    for (at = 0; at < WORKERS; at++)
        if (pthread_create(&service.workers[at].thread, NULL, worker_run, &service.workers[at]) != 0)
            fail("no thread");
    if (pthread_create(&service.datagram_thread, NULL, datagrams_run, &service) != 0)
        fail("no thread");
}

/* Until SIGTERM or SIGINT, or until whoever holds the other end of a pipe at stdin is gone. */
static void wait_for_end(int signals)
{
    struct pollfd wanted[2] = {{.fd = signals, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    struct stat input;
    char unused[64];
    if (fstat(STDIN_FILENO, &input) == 0 && S_ISFIFO(input.st_mode))
        wanted[1].fd = STDIN_FILENO;
    for (;;) {
        if (poll(wanted, ARRAY_LENGTH(wanted), -1) < 0)
            continue;
        if (wanted[0].revents != 0)
            return;
        if (wanted[1].revents != 0 && read(STDIN_FILENO, unused, sizeof(unused)) <= 0)
            return;
    }
}

int service_run(const struct options *options)
{
    sigset_t ends;
    int signals;
    uint16_t port;
    if (options->listen.length == 0)
        fail("--listen is missing");
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    /* Before the threads, which inherit it. */
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    signals = signalfd(-1, &ends, SFD_CLOEXEC);
    port = bind_both(&options->listen);
    start_workers();
    printf("{\"ready\": true, \"port\": %u}\n", port);
    fflush(stdout);
    wait_for_end(signals);
    /* The threads are in the middle of their work, and nothing they have outlives the process. */
    _exit(0);
}
