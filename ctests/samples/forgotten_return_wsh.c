/* Mistake: "return" is missing before ws_reject(). */
#include <ws_handler.h>

static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    if (!ws_bytes_equal(ws_origin(conn), "https://example.com")) {
        int32_t result = ws_reject(hs, 403);
        (void)result;
    }
    return WS_OK;
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_send(conn, msg->type, msg->data, msg->size);
}

WS_HANDLER(.name = "forgotten_return", .do_extra_handshake = do_extra_handshake, .on_message = on_message);
