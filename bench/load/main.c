/* The load generator: see the commands below, and bench/load/client.py for what they answer. */
#include "common.h"
#include "pattern.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] = "load service --listen H:P\n"
                            "load report --service H:P [--flow ID]\n"
                            "load bulk --connect H:P --direction up|down|both --streams N\n"
                            "          (--bytes TOTAL | --seconds S) [--warmup S] [--timeout S]\n"
                            "load ping --connect H:P [--udp] (--count N | --seconds S) [--interval-us U]\n"
                            "load connections --connect H:P --concurrency C --seconds S\n"
                            "load hold --connect H:P --service H:P --count N [--pace PER_SECOND] [--timeout S]\n"
                            "load udp --connect H:P --service H:P --size B --rate PPS --seconds S [--echo]\n";

enum option_code {
    OPTION_CONNECT = 1,
    OPTION_SERVICE,
    OPTION_LISTEN,
    OPTION_DIRECTION,
    OPTION_UDP,
    OPTION_ECHO,
    OPTION_STREAMS,
    OPTION_BYTES,
    OPTION_COUNT,
    OPTION_CONCURRENCY,
    OPTION_SIZE,
    OPTION_FLOW,
    OPTION_INTERVAL,
    OPTION_SECONDS,
    OPTION_WARMUP,
    OPTION_TIMEOUT,
    OPTION_PACE,
    OPTION_RATE,
};

static const struct option accepted[] = {
    {"connect", required_argument, NULL, OPTION_CONNECT},
    {"service", required_argument, NULL, OPTION_SERVICE},
    {"listen", required_argument, NULL, OPTION_LISTEN},
    {"direction", required_argument, NULL, OPTION_DIRECTION},
    {"udp", no_argument, NULL, OPTION_UDP},
    {"echo", no_argument, NULL, OPTION_ECHO},
    {"streams", required_argument, NULL, OPTION_STREAMS},
    {"bytes", required_argument, NULL, OPTION_BYTES},
    {"count", required_argument, NULL, OPTION_COUNT},
    {"concurrency", required_argument, NULL, OPTION_CONCURRENCY},
    {"size", required_argument, NULL, OPTION_SIZE},
    {"flow", required_argument, NULL, OPTION_FLOW},
    {"interval-us", required_argument, NULL, OPTION_INTERVAL},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"warmup", required_argument, NULL, OPTION_WARMUP},
    {"timeout", required_argument, NULL, OPTION_TIMEOUT},
    {"pace", required_argument, NULL, OPTION_PACE},
    {"rate", required_argument, NULL, OPTION_RATE},
    {NULL, 0, NULL, 0},
};

static const struct {
    const char *name;
    int (*run)(const struct options *options);
    bool connect;
    bool service;
} commands[] = {
    {"service", service_run, false, false},
    {"report", report_run, false, true},
    {"bulk", bulk_run, true, false},
    {"ping", ping_run, true, false},
    {"connections", connections_run, true, false},
    {"hold", hold_run, true, true},
    {"udp", udp_run, true, true},
};

static double number(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != 0 || !(value >= 0) || value > 1e15)
        fail("not a number: %s", text);
    return value;
}

static uint64_t whole(const char *text)
{
    char *end;
    uint64_t value;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (end == text || *end != 0 || text[0] == '-' || errno != 0)
        fail("not a whole number: %s", text);
    return value;
}

static enum direction direction(const char *text)
{
    if (strcmp(text, "up") == 0)
        return DIRECTION_UP;
    if (strcmp(text, "down") == 0)
        return DIRECTION_DOWN;
    if (strcmp(text, "both") == 0)
        return DIRECTION_BOTH;
    fail("not a direction: %s", text);
}

static void take(struct options *options, int code, const char *value)
{
    switch ((enum option_code)code) {
    case OPTION_CONNECT:
        options->connect = address_parse(value);
        break;
    case OPTION_SERVICE:
        options->service = address_parse(value);
        break;
    case OPTION_LISTEN:
        options->listen = address_parse(value);
        break;
    case OPTION_DIRECTION:
        options->direction = direction(value);
        break;
    case OPTION_UDP:
        options->udp = true;
        break;
    case OPTION_ECHO:
        options->echo = true;
        break;
    case OPTION_STREAMS:
        options->streams = whole(value);
        break;
    case OPTION_BYTES:
        options->bytes = whole(value);
        break;
    case OPTION_COUNT:
        options->count = whole(value);
        break;
    case OPTION_CONCURRENCY:
        options->concurrency = whole(value);
        break;
    case OPTION_SIZE:
        options->size = whole(value);
        break;
    case OPTION_FLOW:
        options->flow = whole(value);
        break;
    case OPTION_INTERVAL:
        options->interval = whole(value) * 1000;
        break;
    case OPTION_SECONDS:
        options->seconds = number(value);
        break;
    case OPTION_WARMUP:
        options->warmup = number(value);
        break;
    case OPTION_TIMEOUT:
        options->timeout = number(value);
        break;
    case OPTION_PACE:
        options->pace = number(value);
        break;
    case OPTION_RATE:
        options->rate = number(value);
        break;
    default:
        fputs(usage, stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct options options = {.streams = 1, .concurrency = 1, .timeout = -1};
    int code;
    size_t at;
    while ((code = getopt_long(argc, argv, "", accepted, NULL)) != -1)
        take(&options, code, optarg);
    for (at = 0; optind == argc - 1 && at < ARRAY_LENGTH(commands); at++) {
        if (strcmp(argv[optind], commands[at].name) != 0)
            continue;
        if ((commands[at].connect && options.connect.length == 0) ||
            (commands[at].service && options.service.length == 0))
            break;
        signal(SIGPIPE, SIG_IGN);
        pattern_prepare();
        raise_descriptor_limit();
        return commands[at].run(&options);
    }
    fputs(usage, stderr);
    return 2;
}
