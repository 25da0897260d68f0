/*
 * Accepts the connection and then drops it without a Close frame: the client
 * sees 1006.
 *
 *     cc -shared -fPIC abort_wsh.c -o abort_wsh.so
 *     ws://127.0.0.1:8080/abort
 */
#include <ws_handler.h>

static int transfer_data(ws_conn conn)
{
    return ws_abort(conn);
}

WS_HANDLER(.name = "abort", .transfer_data = transfer_data);
