/* Marks of descriptors, and what a forked child does with them. */
#include "descriptors.h"

#include "check.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

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

int main(void)
{
    a_child_closes_what_is_marked();
    a_number_that_was_closed_is_anybodys();
    what_failed_is_not_marked();
    return check_done();
}
