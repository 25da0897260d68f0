/*
 * Fails: the connection is accepted and closed with 1011 at once.
 *
 *     cc -shared -fPIC internal_error_wsh.c -o internal_error_wsh.so
 *     ws://127.0.0.1:8080/internal_error
 */
#include <ws_handler.h>

static int transfer_data(ws_conn conn)
{
    ws_log_conn(conn, WS_LOG_INFO, "failing on purpose");
    return WS_E_FAILED;
}

WS_HANDLER(.name = "internal_error", .transfer_data = transfer_data);
