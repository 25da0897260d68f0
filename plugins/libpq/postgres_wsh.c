/*
 * Counts words in PostgreSQL: each text message is counted, and answered with the
 * word and its count, "word 3". Event style: the worker's event loop watches
 * libpq's descriptor, and one connection to the database has many queries in
 * flight (libpq's pipeline mode).
 *
 *     cc -shared -fPIC $(pkg-config --cflags libpq) postgres_wsh.c -o postgres_wsh.so $(pkg-config --libs libpq)
 *     [handler."/postgres".settings]
 *     conninfo = "host=/run/postgresql dbname=words"
 *     ws://127.0.0.1:8080/postgres
 *
 * Without a connection to the database messages are answered with "unavailable",
 * and connecting is retried every second.
 */
#include <libpq-fe.h>
#include <ws_handler.h>

#define MAX_QUERIES 1024 /* in flight */

static PGconn *database;
static int     is_up;

/* The connections with queries in flight: a ring, in the order sent. */
static ws_conn asking[MAX_QUERIES];
static size_t  first, count;

static const char create[] = "create table if not exists words (word text primary key, seen bigint not null)";
static const char ask[] = "insert into words values ($1, 1) on conflict (word) do update "
                          "set seen = words.seen + 1 returning word || ' ' || seen";

static void on_ready(int32_t fd, uint32_t events, void *arg);
static void connect_again(ws_conn conn, void *arg);

/* Watches the descriptor for the events that libpq waits for. */
static void watch(void)
{
    int unsent = PQflush(database);

    ws_watch_fd(PQsocket(database), unsent == 1 ? WS_FD_READ | WS_FD_WRITE : WS_FD_READ, on_ready, NULL);
}

static ws_conn next_asking(void)
{
    ws_conn conn = asking[first];

    first = (first + 1) % MAX_QUERIES;
    count--;
    return conn;
}

static void disconnect(void)
{
    ws_log(WS_LOG_WARN, "database lost: %s", PQerrorMessage(database));
    ws_unwatch_fd(PQsocket(database));
    while (count > 0)
        ws_send_text(next_asking(), "unavailable");
    PQfinish(database);
    database = NULL;
    is_up = 0;
    ws_set_timer(0, 1000, connect_again, NULL);
}

/* Sends the results that have arrived. */
static void on_ready(int32_t fd, uint32_t events, void *arg)
{
    PGresult *result;

    (void)fd, (void)events, (void)arg;
    if (PQconsumeInput(database) != 1) {
        disconnect();
        return;
    }
    /* The results of a query are followed by a NULL and a PGRES_PIPELINE_SYNC. */
    while (count > 0 && !PQisBusy(database)) {
        result = PQgetResult(database);
        if (result == NULL)
            continue;
        if (PQresultStatus(result) == PGRES_TUPLES_OK)
            ws_send_text(next_asking(), PQgetvalue(result, 0, 0));
        else if (PQresultStatus(result) == PGRES_FATAL_ERROR) {
            ws_log(WS_LOG_ERROR, "query: %s", PQresultErrorMessage(result));
            ws_send_text(next_asking(), "unavailable");
        }
        PQclear(result);
    }
    watch();
}

/* Blocks while it connects, which is acceptable here at the start and once a
 * second; a handler that must not block uses PQconnectStart(). */
static void connect_again(ws_conn conn, void *arg)
{
    ws_bytes  conninfo = ws_config("conninfo");
    PGresult *made;

    (void)conn, (void)arg;
    database = PQconnectdb(conninfo.data != NULL ? conninfo.data : "connect_timeout=1");
    made = PQexec(database, create);
    is_up = PQresultStatus(made) == PGRES_COMMAND_OK && PQsetnonblocking(database, 1) == 0 &&
            PQenterPipelineMode(database) == 1;
    PQclear(made);
    if (is_up)
        watch();
    else
        disconnect();
}

static int on_worker_start(void)
{
    connect_again(0, NULL);
    return WS_OK;
}

static void on_worker_stop(void)
{
    PQfinish(database);
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    const char *word = msg->data; /* a NUL follows */

    if (!is_up || count == MAX_QUERIES || msg->type != WS_TEXT ||
        PQsendQueryParams(database, ask, 1, NULL, &word, NULL, NULL, 0) != 1 ||
        PQpipelineSync(database) != 1) {
        ws_send_text(conn, "unavailable");
        return;
    }
    asking[(first + count++) % MAX_QUERIES] = conn;
    watch();
}

WS_HANDLER(.name = "postgres", .on_worker_start = on_worker_start, .on_worker_stop = on_worker_stop,
           .on_message = on_message);
