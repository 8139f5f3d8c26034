/* Marks of descriptors, and what a forked child does with them. */
#include "core/descriptors.h"

#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Without the lock nearly every child has a copy. */
#define FORKS 400

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static int null(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static void a_child_closes_what_is_marked(void)
{
    int kept = aq_fd_keep(null()), own = null(), released = aq_fd_keep(null()), high, status;
    pid_t child;

    high = aq_fd_keep(fcntl(kept, F_DUPFD_CLOEXEC, 200));
    CHECK(high >= 200);
    CHECK_INT(aq_fd_release(released), released);
    child = fork();
    if (child == 0) {
        aq_forked();
        _exit(is_open(kept) | is_open(high) << 1 | !is_open(own) << 2 | !is_open(released) << 3);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_INT(status, 0);
    CHECK(is_open(kept) && is_open(high));
    aq_fd_close(kept);
    aq_fd_close(high);
    close(own);
    close(released);
}

static void a_number_that_was_closed_is_anybodys(void)
{
    int fd = aq_fd_keep(null()), again;

    aq_fd_close(fd);
    CHECK(!is_open(fd));
    again = null();
    CHECK_INT(again, fd);
    aq_forked();
    CHECK(is_open(again));
    aq_fd_close(again); /* never marked */
    CHECK(!is_open(again));
}

static void what_failed_is_not_marked(void)
{
    CHECK_INT(aq_fd_keep(-1), -1);
    CHECK_INT(aq_fd_release(-1), -1);
    CHECK_INT(aq_fd_keep(1 << 20), 1 << 20);
    CHECK_INT(aq_fd_release(1 << 20), 1 << 20);
    aq_forked();
}

static atomic_int over;
static atomic_ulong opened;

static void *open_and_close(void *unused)
{
    (void)unused;
    while (!atomic_load(&over)) {
        aq_fd_close(AQ_FD_OPEN(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)));
        atomic_fetch_add(&opened, 1);
    }
    return NULL;
}

/* How many descriptors from the fourth on a child has that it was not to have. */
static int left_in_a_child(void)
{
    int status, left = 0;
    pid_t child = fork();
    if (child == 0) {
        aq_forked();
        for (int fd = 3; fd < 64; fd++)
            left += is_open(fd);
        _exit(left);
    }
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

/* Whatever other threads are opening at the time of the fork. */
static void a_child_has_nothing_that_was_being_opened(void)
{
    pthread_t threads[4];
    int left = 0, before = left_in_a_child();
    for (int i = 0; i < 4; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, open_and_close, NULL), 0);
    for (int i = 0; i < FORKS; i++)
        left += left_in_a_child() != before;
    atomic_store(&over, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(left, 0);
    CHECK(atomic_load(&opened) > 0);
}

int main(void)
{
    a_child_has_nothing_that_was_being_opened();
    a_child_closes_what_is_marked();
    a_number_that_was_closed_is_anybodys();
    what_failed_is_not_marked();
    return check_done();
}
