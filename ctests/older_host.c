/*
 * A handler in a host that is older than it: the host's table ends early, and
 * what follows in memory must not be read. It is put at the end of a page, behind
 * which there is none.
 */
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include <ws_handler.h>

static int released;

static void release(void *arg)
{
    released += arg == &released;
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    (void)conn, (void)msg;
}

WS_HANDLER(.name = "newer", .on_message = on_message);

/* What every function that such a host lacks has to return. */
static int lacks_all(void)
{
    char text[8];

    return ws_attach_user(NULL, &released, release) == WS_E_UNSUPPORTED && released == 1 &&
           ws_attach_state(NULL, "x", 1) == WS_E_UNSUPPORTED &&
           ws_query_param(1, "x", text, sizeof text) == WS_E_UNSUPPORTED &&
           ws_cookie(1, "x", text, sizeof text) == WS_E_UNSUPPORTED && strcmp(ws_host_version(), "") == 0 &&
           ws_workers() == 1 && ws_watch_fd(0, WS_FD_READ, NULL, NULL) == WS_E_UNSUPPORTED &&
           ws_unwatch_fd(0) == WS_E_UNSUPPORTED && ws_get_extension("x") == NULL &&
           ws_send_raw(1, "x", 1) == WS_E_UNSUPPORTED && ws_subscribe(1, "x", 0) == WS_E_UNSUPPORTED &&
           ws_unsubscribe(1, "x") == WS_E_UNSUPPORTED && ws_publish("x", WS_TEXT, "", 0, 0) == WS_E_UNSUPPORTED &&
           ws_subscribers("x") == 0 && ws_missed(1) == 0 && ws_remote_user(1).data == NULL;
}

int main(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = WS_HOST_LEAST_;
    char  *pages = (char *)mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char  *table;

    if (pages == MAP_FAILED || mprotect(pages + page, page, PROT_NONE) != 0)
        return 2;
    table = pages + page - size;
    memcpy(table, &size, sizeof size);
    if (ws_handler_entry_v1((const ws_host *)(void *)table) == NULL || !lacks_all())
        return 1;
    size -= sizeof(void *);
    table = pages + page - size;
    memcpy(table, &size, sizeof size);
    return ws_handler_entry_v1((const ws_host *)(void *)table) == NULL ? 0 : 3;
}
