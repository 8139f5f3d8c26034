#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_SECONDS 5.0

#define FORMAT(number)                                                                                                 \
    "{\"open\": %" number ", \"bulk\": %" number ", \"accepted\": %" number ", \"surplus\": %" number                  \
    ", \"stray\": %" number ", \"received\": %" number ", \"bytes\": %" number ", \"duplicates\": %" number            \
    ", \"reordered\": %" number ", \"highest\": %" number "}\n"

size_t report_print(const struct report *report, char *buffer, size_t length)
{
    return (size_t)snprintf(buffer, length, FORMAT(PRIu64), report->open, report->bulk, report->accepted,
                            report->surplus, report->stray, report->received, report->bytes, report->duplicates,
                            report->reordered, report->highest);
}

/* One line from the service into `line`. */
static void ask(const struct address *service, uint64_t flow, char *line, size_t size)
{
    static uint64_t turn;
    struct request request = {.operation = OPERATION_REPORT, .seed = flow};
    size_t have = 0;
    ssize_t got;
    int fd = connect_wait(service, turn++, ANSWER_SECONDS);
    if (fd < 0)
        fail("the service cannot be reached: %s", strerror(errno));
    if (!send_all(fd, &request, sizeof(request)))
        fail("the service takes no request: %s", strerror(errno));
    while (have < size - 1 && (got = recv(fd, line + have, size - 1 - have, 0)) > 0)
        have += (size_t)got;
    close(fd);
    if (have == 0 || line[have - 1] != '\n')
        fail("the service gives no report");
    line[have] = 0;
}

struct report report_ask(const struct address *service, uint64_t flow)
{
    struct report report;
    char line[1024];
    ask(service, flow, line, sizeof(line));
    if (sscanf(line, FORMAT(SCNu64), &report.open, &report.bulk, &report.accepted, &report.surplus, &report.stray,
               &report.received, &report.bytes, &report.duplicates, &report.reordered, &report.highest) != 10)
        fail("the service's report cannot be read");
    return report;
}

int report_run(const struct options *options)
{
    char line[1024];
    ask(&options->service, options->flow, line, sizeof(line));
    fputs(line, stdout);
    return 0;
}
