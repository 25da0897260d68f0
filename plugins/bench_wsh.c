/*
 * Sends at a rate, to test clients under load: after the text "SECONDS COUNT
 * MESSAGE" it sends MESSAGE every SECONDS, COUNT times, and closes. SECONDS may
 * be a fraction, or 0 for as fast as the peer reads. Blocking style; it waits in
 * ws_receive() instead of sleeping, which returns when the peer disconnects.
 *
 *     cc -shared -fPIC bench_wsh.c -o bench_wsh.so
 *     ws://127.0.0.1:8080/bench, then send "0.5 10 tick"
 */
#include <stdlib.h>
#include <ws_handler.h>

/* Waits until ws_now() is `until`; returns 0 if the connection must end before. */
static int wait_until(ws_conn conn, uint64_t until)
{
    uint64_t   now;
    ws_message ignored;

    while ((now = ws_now()) < until) {
        int64_t ms = (int64_t)((until - now + 999999) / 1000000);
        int32_t result = ws_receive(conn, &ignored, ms);
        if (result != WS_MESSAGE && result != WS_E_TIMEOUT)
            return 0;
    }
    return 1;
}

static int transfer_data(ws_conn conn)
{
    ws_message    msg;
    char         *end, *message;
    double        seconds;
    unsigned long count;
    uint64_t      next;
    int32_t       result = WS_OK;

    if (ws_receive(conn, &msg, WS_FOREVER) != WS_MESSAGE)
        return WS_OK;
    seconds = strtod(msg.data, &end);
    count = strtoul(end, &end, 10);
    if (!(seconds >= 0 && seconds <= 86400) || *end != ' ') {
        ws_log_conn(conn, WS_LOG_WARN, "expected SECONDS COUNT MESSAGE");
        return WS_E_INVALID;
    }
    message = (char *)malloc(strlen(end)); /* msg does not outlive the next ws_receive() */
    if (message == NULL)
        return WS_E_FAILED;
    strcpy(message, end + 1);

    next = ws_now();
    while (count-- > 0 && result == WS_OK) {
        result = ws_send_text(conn, message);
        next += (uint64_t)(seconds * 1e9);
        if (!wait_until(conn, next))
            count = 0;
    }
    free(message);
    return WS_OK;
}

WS_HANDLER(.name = "bench", .transfer_data = transfer_data);
