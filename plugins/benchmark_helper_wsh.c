/*
 * The server side of a throughput benchmark, without extensions. Commands are texts:
 *
 *     receive N    sends a binary message of N letters "a"
 *     send VERIFY  receives one message, checks that it is all "a" if VERIFY is 1,
 *                  and answers with its size as text
 *
 * Anything else, or a wrong payload, ends the connection with 1011. Blocking
 * style, since a command and its payload belong together.
 *
 *     cc -shared -fPIC benchmark_helper_wsh.c -o benchmark_helper_wsh.so
 *     ws://127.0.0.1:8080/benchmark_helper
 */
#include <stdlib.h>
#include <ws_handler.h>

#define MAX_PAYLOAD (256ul * 1024 * 1024) /* bytes */

/* The letters of a connection, reused between commands. */
typedef struct letters {
    char  *data;
    size_t size;
} letters;

static int32_t receive(ws_conn conn, letters *letters, const char *size_text)
{
    char         *end;
    unsigned long size = strtoul(size_text, &end, 10);

    if (end == size_text || *end != '\0' || size > MAX_PAYLOAD)
        return WS_E_INVALID;
    if (size > letters->size) {
        char *data = (char *)realloc(letters->data, size);
        if (data == NULL)
            return WS_E_FAILED;
        memset(data + letters->size, 'a', size - letters->size);
        letters->data = data;
        letters->size = size;
    }
    return ws_send(conn, WS_BINARY, letters->data, size);
}

static int all_a(const char *data, size_t size)
{
    return size == 0 || (data[0] == 'a' && memcmp(data, data + 1, size - 1) == 0);
}

static int32_t send_size(ws_conn conn, int verify)
{
    ws_message payload;
    char       text[24];
    int32_t    result;

    do
        result = ws_receive(conn, &payload, WS_FOREVER);
    while (result == WS_E_DRAINING); /* a started command is completed */
    if (result != WS_MESSAGE)
        return WS_E_GONE;
    if (verify && !all_a(payload.data, payload.size))
        return WS_E_INVALID;
    snprintf(text, sizeof text, "%zu", payload.size);
    return ws_send_text(conn, text);
}

static int transfer_data(ws_conn conn)
{
    ws_message command;
    letters    letters = {NULL, 0};
    int32_t    result = WS_OK;

    while (result == WS_OK && ws_receive(conn, &command, WS_FOREVER) == WS_MESSAGE) {
        ws_bytes text = {command.data, command.size};
        if (command.type != WS_TEXT)
            result = WS_E_INVALID;
        else if (strncmp(text.data, "receive ", 8) == 0)
            result = receive(conn, &letters, text.data + 8);
        else if (strncmp(text.data, "send ", 5) == 0)
            result = send_size(conn, ws_bytes_equal(text, "send 1"));
        else
            result = WS_E_INVALID;
    }
    free(letters.data);
    if (result == WS_E_INVALID)
        ws_log_conn(conn, WS_LOG_WARN, "invalid command or payload");
    return result == WS_E_GONE ? WS_OK : result;
}

WS_HANDLER(.name = "benchmark_helper", .flags = WS_NO_EXTENSIONS, .transfer_data = transfer_data);
