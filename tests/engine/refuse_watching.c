/* Preloaded by test_watching.py: a kernel that has no memory, or whose user has used up fs.epoll.max_user_watches. */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic int refusals, unreadable;

void refuse_watching(int times);
void fail_reading(int port);

/* epoll takes no new descriptors for so many times. */
void refuse_watching(int times)
{
    atomic_store(&refusals, times);
}

/* The next read from a socket on this port fails. */
void fail_reading(int port)
{
    atomic_store(&unreadable, port);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (operation == EPOLL_CTL_ADD && atomic_load(&refusals) > 0) {
        atomic_fetch_sub(&refusals, 1);
        errno = ENOSPC;
        return -1;
    }
    return (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    struct sockaddr_in own = {0};
    socklen_t length = sizeof(own);
    int port = atomic_load(&unreadable);
    if (port != 0 && getsockname(fd, (struct sockaddr *)&own, &length) == 0 && ntohs(own.sin_port) == port) {
        atomic_store(&unreadable, 0);
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_recvmmsg, fd, messages, count, flags, timeout);
}
