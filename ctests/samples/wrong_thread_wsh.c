/* Mistake: a thread asks for what only a callback of the connection may. */
#include <pthread.h>
#include <stdlib.h>
#include <ws_handler.h>

static void *work(void *arg)
{
    ws_conn conn = *(ws_conn *)arg;

    free(arg);
    ws_set_state(conn, "done", 4);
    return NULL;
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_conn  *arg = (ws_conn *)malloc(sizeof *arg);
    pthread_t thread;

    (void)msg;
    *arg = conn;
    if (pthread_create(&thread, NULL, work, arg) == 0)
        pthread_detach(thread);
}

WS_HANDLER(.name = "wrong_thread", .on_message = on_message);
