/* Both forms of strerror_r give the text of an error; the one of this machine's C library as well. */
#include "aq.h"

#include <errno.h>

#include "check.h"

static char elsewhere[] = "text of glibc";

static char *form_of_glibc(int error, char *buffer, size_t length)
{
    snprintf(buffer, length, "not used for %d", error);
    return elsewhere;
}

static int form_of_posix(int error, char *buffer, size_t length)
{
    snprintf(buffer, length, "text of POSIX %d", error);
    return error == ERANGE ? ERANGE : 0;
}

int main(void)
{
    char buffer[64];
    check_watchdog(60);
    CHECK(strcmp(AQ_ERRNO_TEXT(form_of_glibc(1, buffer, sizeof(buffer)), buffer), "text of glibc") == 0);
    CHECK(strcmp(AQ_ERRNO_TEXT(form_of_posix(1, buffer, sizeof(buffer)), buffer), "text of POSIX 1") == 0);
    CHECK(strcmp(AQ_ERRNO_TEXT(form_of_posix(ERANGE, buffer, sizeof(buffer)), buffer), "unknown error") == 0);
    CHECK(strcmp(AQ_ERRNO_TEXT(strerror_r(EACCES, buffer, sizeof(buffer)), buffer), strerror(EACCES)) == 0);
    return check_done();
}
