/*
 * ws_handler.h - the interface between wshd and its handlers. ABI 1.0.
 *
 * This file is the authority. A handler is a shared object named NAME_wsh.so
 * that includes this file and nothing else of wshd, and is built with
 *
 *     cc -shared -fPIC NAME_wsh.c -o NAME_wsh.so
 *
 * The file a/b_wsh.so below the handler directory serves the resource /a/b.
 *
 * THE RULES
 *
 * Styles. A handler sets exactly one of two members: transfer_data (blocking
 * style: a thread for each connection, ws_receive() waits) or on_message
 * (event style: callbacks on the worker's event loop, which must not wait).
 *
 * Threads. All event-style connections of a worker share one thread, its event
 * loop; a blocking connection has a thread of its own. All callbacks of a
 * connection run on its thread, one at a time, so handlers of the event style
 * need no lock for data that only their callbacks use. Functions tagged [any
 * thread] may be called anywhere; for the others the tag names the place.
 * In the wrong place a function does nothing and returns WS_E_PLACE (or nothing,
 * zero or absent bytes), and the host logs it; a host with --strict-abi, or one
 * built in debug mode, aborts and names the function.
 *
 * Connections are values. A ws_conn is an id, not a pointer: it can be kept,
 * compared, copied to other threads, and used after the connection has ended: a
 * call on a connection that is closing or gone returns WS_E_GONE. Sending on one
 * that is not open yet returns WS_E_PLACE. An id is never reused in the same
 * process.
 *
 * Bytes are pointer and length. Bytes from the host are valid until the
 * callback returns (in transfer_data: until the next ws_receive), unless the
 * function's comment says longer. They are always followed by one NUL, which is
 * not counted. A whole text message is valid UTF-8; a fragment of one (WS_STREAM)
 * may begin or end within a character. Bytes for the host are copied before the
 * call returns, unless sent with ws_send_owned(). A strict host (see Threads)
 * overwrites msg->data when the callback has returned.
 *
 * Results. WS_OK and other values >= 0 are success, values < 0 are errors.
 * Each comment lists all results of its function. Bits of flags that the host
 * does not know return WS_E_INVALID. What a call with the result WS_OK queued is
 * delivered, or moves with the connection, or on_close reports its end.
 *
 * Protocol. RFC sections are in brackets; without a number they are of RFC 6455.
 *
 * Processes. Workers are forked. The code of a handler runs in workers only,
 * and a handler is never unloaded: new code means a new process. The process
 * belongs to the host, and other handlers share it:
 *   - SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGXCPU, SIGTERM,
 *     SIGALRM, SIGRTMIN+5 and SIGRTMIN+6 belong to the host: a handler neither
 *     catches, blocks nor unblocks them. See SIGNALS in ws_handler(3).
 *   - Standard input is /dev/null; output and error are the server's own, and
 *     /dev/null once it runs as a daemon: write with ws_log().
 *   - chdir(), umask(), setlocale(), setenv(), setrlimit() and changes of the
 *     user affect all handlers of the process: do not call them.
 *   - A child that a handler forks must exec() or _exit(), and cannot call the
 *     host: its calls return WS_E_GONE.
 *
 * Containment. A negative result of a callback closes its connection with 1011
 * (in do_extra_handshake: answers 500) and is logged with handler, callback and
 * value. C++ exceptions and Rust panics must not leave the handler:
 * ws_handler.hpp and the crate ws-handler catch them inside it. A crash, an
 * abort(), an exit(), an _exit() or an endless loop costs its connection and the
 * worker process, and is logged with the handler's name. Any call of the host is
 * progress for the watchdog.
 *
 * Growth. Both tables begin with their size and are only ever appended to.
 * Within ABI 1 a handler may be older or newer than the host: members that one
 * side does not know count as absent, and a function that the host lacks
 * returns WS_E_UNSUPPORTED (0, NULL or absent bytes where it returns no result).
 * Another major version is refused at load. Interfaces outside of the table are
 * offered by ws_get_extension().
 */
#ifndef WS_HANDLER_H
#define WS_HANDLER_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WS_ABI_MAJOR 1
#define WS_ABI_MINOR 0
#define WS_ABI ((uint32_t)(WS_ABI_MAJOR << 16 | WS_ABI_MINOR))

/* ------------------------------------------------------------------ values */

/* A connection: an id, never 0. */
typedef uint64_t ws_conn;

/* A handshake in progress: a handle, not memory. Valid in do_extra_handshake
 * and, if that returned WS_LATER, until the handshake is finished; after that
 * calls return WS_E_GONE. */
typedef struct ws_handshake ws_handshake;

/* Bytes: data[0..size), then a NUL that is not counted. Absent: data is NULL. */
typedef struct ws_bytes {
    const char *data;
    size_t      size;
} ws_bytes;

/* A message [5.6], or in a handler with WS_STREAM one fragment of a message [5.4].
 * This struct never grows. */
typedef struct ws_message {
    uint32_t    type;  /* WS_TEXT or WS_BINARY */
    uint32_t    flags; /* WS_FIRST, WS_LAST; both in a whole message */
    const char *data;
    size_t      size;
} ws_message;

/* One end of a connection. */
typedef struct ws_address {
    uint32_t family;    /* WS_IPV4, WS_IPV6 or WS_UNIX */
    uint32_t port;      /* 0 with WS_UNIX */
    char     text[112]; /* "192.0.2.1", "2001:db8::1", a path, or "" */
} ws_address;

/* How to compress [RFC 7692, 7.1]; for ws_configure_deflate(). Begin with
 * WS_DEFLATE_DEFAULTS. */
typedef struct ws_deflate_options {
    size_t   size;                       /* sizeof(ws_deflate_options) */
    uint32_t server_max_window_bits;     /* 9 to 15: largest window for sending */
    uint32_t client_max_window_bits;     /* 9 to 15: largest window requested of the client */
    uint32_t server_no_context_takeover; /* 1: each message is compressed on its own */
    uint32_t client_no_context_takeover; /* 1: the same is requested of the client */
    uint32_t threshold;                  /* shorter messages are sent uncompressed; bytes */
    uint32_t level;                      /* 1 (fast) to 9 (small) */
} ws_deflate_options;

#define WS_DEFLATE_DEFAULTS { sizeof(ws_deflate_options), 15, 15, 0, 1, 64, 1 }

/* Runs on the thread of the connection; with conn 0, on the worker's event loop. */
typedef void (*ws_task)(ws_conn conn, void *arg);

/* A watched descriptor is ready; events are WS_FD_.... See ws_watch_fd(). */
typedef void (*ws_ready)(int32_t fd, uint32_t events, void *arg);

/* Message types: their opcodes [5.2]. */
#define WS_TEXT   1
#define WS_BINARY 2

/* ws_message.flags */
#define WS_FIRST 1u /* the message begins here */
#define WS_LAST  2u /* the message ends here */

/* Flags for sending. */
#define WS_MORE         1u /* a fragment [5.4]: the next send continues this message */
#define WS_UNCOMPRESSED 2u /* do not compress this message [RFC 7692, 6] */

/* For ws_publish(), beside WS_UNCOMPRESSED. */
#define WS_NOT_SELF 0x100u /* not to the connection in whose callback this is called */

/* For ws_subscribe(). */
#define WS_DROP 1u /* if the connection does not keep up, messages are dropped and counted: ws_missed() */

/* Events of a watched descriptor. */
#define WS_FD_READ   1u
#define WS_FD_WRITE  2u
#define WS_FD_HANGUP 4u /* reported only: an error, or the other end is closed */

/* ws_address.family */
#define WS_UNIX 1
#define WS_IPV4 4
#define WS_IPV6 6

/* Results. */
#define WS_OK            0
#define WS_CLOSED        0     /* ws_receive: the connection is closing, no more messages */
#define WS_MESSAGE       1     /* ws_receive: a message */
#define WS_REJECTED      1     /* do_extra_handshake: an error reply is prepared */
#define WS_ABORTED       2     /* do_extra_handshake: drop without a reply */
#define WS_LATER         3     /* do_extra_handshake: another call will finish the handshake */
#define WS_E_GONE        (-1)  /* the connection is gone, or its closing has begun */
#define WS_E_FULL        (-2)  /* the send queue is full: nothing was queued */
#define WS_E_TIMEOUT     (-3)  /* the time limit was reached */
#define WS_E_DRAINING    (-4)  /* the server wants this connection to end soon */
#define WS_E_INVALID     (-5)  /* an argument is not allowed here */
#define WS_E_PLACE       (-6)  /* called from the wrong place, see the tags */
#define WS_E_LIMIT       (-7)  /* a bound is reached */
#define WS_E_UNSUPPORTED (-8)  /* the host is older than this function */
#define WS_E_FAILED      (-9)  /* for handlers: some other failure */
#define WS_E_ABSENT      (-10) /* there is nothing of that name */
#define WS_E_DENIED      (-11) /* the configuration does not allow it */

/* Close codes [7.4.1, and the IANA registry] that programs use by name. */
#define WS_CLOSE_NORMAL         1000
#define WS_CLOSE_GOING_AWAY     1001
#define WS_CLOSE_PROTOCOL_ERROR 1002
#define WS_CLOSE_UNSUPPORTED    1003
#define WS_CLOSE_NO_CODE        1005 /* the Close frame carries no code */
#define WS_CLOSE_ABNORMAL       1006 /* there was no Close frame; never sent */
#define WS_CLOSE_INVALID_DATA   1007
#define WS_CLOSE_POLICY         1008
#define WS_CLOSE_TOO_BIG        1009
#define WS_CLOSE_INTERNAL_ERROR 1011
#define WS_CLOSE_RESTART        1012
#define WS_CLOSE_TRY_LATER      1013

/* Who ended a connection; see on_close. */
#define WS_BY_PEER    1 /* the peer sent the first Close frame, or disconnected without one */
#define WS_BY_HANDLER 2 /* ws_close(), ws_abort(), or the end of transfer_data */
#define WS_BY_HOST    3 /* wshd: a protocol error, a limit, a shutdown */
#define WS_BY_MOVE    4 /* it has not ended: it moves to another process */

/* ws_tls_fact() */
#define WS_TLS_VERSION      1 /* "TLSv1.3" */
#define WS_TLS_CIPHER       2 /* "TLS_AES_128_GCM_SHA256" */
#define WS_TLS_SERVER_NAME  3 /* the name that the client asked for */
#define WS_TLS_PEER_SUBJECT 4 /* subject of the client's certificate */
#define WS_TLS_ALPN         5 /* the negotiated protocol: "http/1.1", "h2" [RFC 7301] */
#define WS_TLS_PEER_CHAIN   6 /* the client's certificates in DER, concatenated, its own first */
#define WS_TLS_RESUMED      7 /* "1" if an earlier session was resumed, else absent */

/* Levels of ws_log(). */
#define WS_LOG_FINE     10
#define WS_LOG_DEBUG    20
#define WS_LOG_INFO     30
#define WS_LOG_WARN     40
#define WS_LOG_ERROR    50
#define WS_LOG_CRITICAL 60

/* Maximum size of a topic's name and of a published message; bytes. */
#define WS_TOPIC_MAX   255u
#define WS_PUBLISH_MAX 1048576u

/* A timeout in milliseconds that never ends. */
#define WS_FOREVER ((int64_t)-1)

/* Maximum size of the state of ws_set_state(); bytes. */
#define WS_STATE_MAX 4096u

/* -------------------------------------------------------- the handler's table */

/* ws_handler.flags. A host ignores unknown bits 0 to 15, and refuses a handler
 * with an unknown bit of 16 to 31. */
#define WS_RESUMABLE     0x00001u /* transfer_data can continue in another process, where it is called
                                   * again: see ws_receive() and ws_is_resumed() */
#define WS_KEEP_REQUEST  0x10000u /* keep method and headers for the life of the connection */
#define WS_STREAM        0x20000u /* deliver fragments as they come instead of whole messages */
#define WS_NO_EXTENSIONS 0x40000u /* refuse all extensions */

/* The handler's table. All members are optional except one of transfer_data and
 * on_message. The table and its strings must live as long as the process. */
typedef struct ws_handler {
    size_t   size; /* set by WS_HANDLER */
    uint32_t abi;  /* set by WS_HANDLER */
    uint32_t flags;

    /* For people and logs; UTF-8. The default name is that of the file. */
    const char *name;
    const char *version;

    /* Subprotocols [1.9] in order of preference, such as "chat.v2, chat.v1". The first
     * that the client offers is chosen before do_extra_handshake, which may
     * choose otherwise. When none is chosen the connection is accepted without
     * a subprotocol; browsers then fail it if they offered any. */
    const char *protocols;

    /* A worker starts or stops. No connection exists. A negative result of
     * start takes the handler out of service in this worker (503). stop is not
     * called when a worker crashes. If each connection has a process of its own,
     * start is called in their parent only: they have its memory, descriptors,
     * timers and posts, but not its threads. Both run on the thread of the
     * worker's event loop. */
    int32_t (*on_worker_start)(void);
    void (*on_worker_stop)(void);

    /* The opening handshake, before any reply [4.2]. Returns:
     *   WS_OK        accept
     *   WS_REJECTED  what ws_reject() returns: an error reply
     *   WS_ABORTED   what ws_abort_handshake() returns: no reply at all
     *   WS_LATER     event style only: another call will finish it, from any
     *                thread or callback, within the handshake's time limit
     *                (else 503)
     *   negative     500
     *   any other    500
     * Fails closed: once ws_reject() or ws_abort_handshake() was called, WS_OK
     * no longer accepts, see there. In the blocking style it may wait. */
    int32_t (*do_extra_handshake)(ws_conn conn, ws_handshake *hs);

    /* The connection is open, or has moved here from another process: see
     * ws_is_resumed(). Both styles. Returns WS_OK; negative closes with 1011. */
    int32_t (*on_open)(ws_conn conn);

    /* Blocking style: the life of the connection, on its own thread. The
     * connection is closed when it returns: with 1000 after WS_OK (1012 once
     * ws_receive() has returned WS_E_DRAINING), with 1011 after a negative result. */
    int32_t (*transfer_data)(ws_conn conn);

    /* Event style: a message (with WS_STREAM: a fragment) has arrived. */
    void (*on_message)(ws_conn conn, const ws_message *msg);

    /* The peer has sent the first Close frame [5.5.1, 7.1.3]; ws_close_code() and
     * ws_close_reason() return its content. ws_close() chooses the answer, by
     * default the same code without a reason. Returns WS_OK; negative answers 1011. */
    int32_t (*passive_closing_handshake)(ws_conn conn);

    /* The connection has ended: exactly once for each on_open in this process,
     * both styles. by is WS_BY_..., code [7.1.5] that of the side that ended it: 1005
     * for none, 1006 for an end without a Close frame. The data of the connection
     * (ws_user, ws_state, ws_resource) can still be read; nothing can be sent. With
     * WS_BY_MOVE (code 0) the connection moves to another process, where on_open
     * follows; ws_set_state() still takes effect here.
     * Not called when the worker crashes. */
    void (*on_close)(ws_conn conn, uint32_t by, uint32_t code);

    /* A Pong [5.5.3] with the payload of an earlier ws_ping() has arrived; round-trip time
     * in nanoseconds. */
    void (*on_pong)(ws_conn conn, const char *data, size_t size, uint64_t rtt);

    /* Event style: after a WS_E_FULL the send queue has drained to its low mark. */
    void (*on_writable)(ws_conn conn);

    /* Event style: the server wants this connection to end soon and cannot move
     * it now; it is closed with 1012 when the time is over. In the blocking style
     * ws_receive() returns WS_E_DRAINING, unless the handler has WS_RESUMABLE:
     * then its connection moves at the next ws_receive(). */
    void (*on_drain)(ws_conn conn);

    /* ---- since 1.1: append here ---- */
} ws_handler;

/* ----------------------------------------------------------- the host's table */

/* The host's table. Handlers use the functions below instead. */
typedef struct ws_host {
    size_t   size;
    uint32_t abi;
    uint32_t worker; /* number of this worker in its pool, from 0 */

    /* without a connection */
    void (*log)(const struct ws_host *host, ws_conn conn, uint32_t level, const char *text, size_t size);
    uint64_t (*now)(void);
    ws_bytes (*config)(const struct ws_host *host, const char *key, size_t size);
    int32_t (*config_at)(const struct ws_host *host, size_t index, ws_bytes *key, ws_bytes *value);

    /* the request */
    ws_bytes (*resource)(ws_conn conn);
    ws_bytes (*path)(ws_conn conn);
    ws_bytes (*query)(ws_conn conn);
    ws_bytes (*authority)(ws_conn conn);
    ws_bytes (*origin)(ws_conn conn);
    ws_bytes (*method)(ws_conn conn);
    ws_bytes (*header)(ws_conn conn, const char *name, size_t size);
    int32_t (*header_at)(ws_conn conn, size_t index, ws_bytes *name, ws_bytes *value);
    ws_bytes (*requested_protocols)(ws_conn conn);
    ws_bytes (*requested_extensions)(ws_conn conn);
    uint32_t (*version)(ws_conn conn);
    int32_t (*remote_address)(ws_conn conn, ws_address *address, size_t size);
    int32_t (*local_address)(ws_conn conn, ws_address *address, size_t size);
    ws_bytes (*tls_fact)(ws_conn conn, uint32_t which);

    /* the reply */
    int32_t (*set_protocol)(ws_handshake *hs, const char *protocol, size_t size);
    int32_t (*add_header)(ws_handshake *hs, const char *name, size_t name_size, const char *value,
                          size_t value_size);
    int32_t (*configure_deflate)(ws_handshake *hs, const ws_deflate_options *options);
    int32_t (*refuse_extensions)(ws_handshake *hs);
    int32_t (*accept)(ws_handshake *hs);
    int32_t (*accept_and_close)(ws_handshake *hs, uint32_t code, const char *reason, size_t size);
    int32_t (*reject)(ws_handshake *hs, uint32_t status, const char *type, size_t type_size,
                      const char *body, size_t body_size);
    int32_t (*abort_handshake)(ws_handshake *hs);

    /* negotiated */
    ws_bytes (*protocol)(ws_conn conn);
    ws_bytes (*extensions)(ws_conn conn);
    int32_t (*deflate)(ws_conn conn);

    /* data */
    int32_t (*receive)(ws_conn conn, ws_message *msg, int64_t timeout_ms);
    int32_t (*send)(ws_conn conn, uint32_t type, const void *data, size_t size, uint32_t flags);
    int32_t (*send_owned)(ws_conn conn, uint32_t type, const void *data, size_t size, uint32_t flags,
                          void (*release)(void *arg), void *arg);
    int32_t (*ping)(ws_conn conn, const void *data, size_t size);
    size_t (*buffered)(ws_conn conn);
    int32_t (*pause)(ws_conn conn);
    int32_t (*resume)(ws_conn conn);
    uint32_t (*last_opcode)(ws_conn conn);

    /* time and threads */
    int64_t (*set_timer)(const struct ws_host *host, ws_conn conn, uint64_t delay_ms, uint64_t period_ms,
                         ws_task task, void *arg);
    int32_t (*clear_timer)(const struct ws_host *host, ws_conn conn, int64_t timer);
    int32_t (*post)(const struct ws_host *host, ws_conn conn, ws_task task, void *arg);

    /* closing */
    int32_t (*close)(ws_conn conn, uint32_t code, const char *reason, size_t size);
    int32_t (*abort)(ws_conn conn);
    uint32_t (*close_code)(ws_conn conn);
    ws_bytes (*close_reason)(ws_conn conn);

    /* data of a connection */
    int32_t (*set_user)(ws_conn conn, void *user, void (*release)(void *arg));
    void *(*user)(ws_conn conn);
    int32_t (*set_state)(ws_conn conn, const void *data, size_t size);
    ws_bytes (*state)(ws_conn conn);
    int32_t (*is_resumed)(ws_conn conn);
    int32_t (*attach_user)(ws_handshake *hs, void *user, void (*release)(void *arg));
    int32_t (*attach_state)(ws_handshake *hs, const void *data, size_t size);

    /* decoded */
    int32_t (*query_param)(ws_conn conn, const char *name, size_t name_size, char *text, size_t size);
    int32_t (*cookie)(ws_conn conn, const char *name, size_t name_size, char *text, size_t size);

    /* the worker and the host */
    const char *host_version;
    uint32_t (*workers)(const struct ws_host *host);
    int32_t (*watch_fd)(const struct ws_host *host, int32_t fd, uint32_t events, ws_ready ready, void *arg);
    int32_t (*unwatch_fd)(const struct ws_host *host, int32_t fd);
    const void *(*get_extension)(const struct ws_host *host, const char *id, size_t size);

    /* octets */
    int32_t (*send_raw)(const struct ws_host *host, ws_conn conn, const void *data, size_t size);

    /* topics */
    int32_t (*subscribe)(ws_conn conn, const char *topic, size_t size, uint32_t flags);
    int32_t (*unsubscribe)(ws_conn conn, const char *topic, size_t size);
    int32_t (*publish)(const struct ws_host *host, const char *topic, size_t topic_size, uint32_t type,
                       const void *data, size_t size, uint32_t flags);
    uint64_t (*subscribers)(const struct ws_host *host, const char *topic, size_t size);
    uint64_t (*missed)(ws_conn conn);
    ws_bytes (*remote_user)(ws_conn conn);

    /* ---- since 1.1: append here ---- */
} ws_host;

/* Whether the host's table has this member: see Growth. */
#define WS_HOST_HAS(member) \
    (ws_host_->size >= offsetof(ws_host, member) + sizeof ws_host_->member)
/* Every host has the members up to this size: WS_HOST_HAS is not needed for them. */
#define WS_HOST_LEAST_ (offsetof(ws_host, is_resumed) + sizeof(int32_t (*)(ws_conn)))

/* ------------------------------------------------------------ the entry point */

#if defined(__GNUC__)
#define WS_EXPORT __attribute__((visibility("default")))
#define WS_LOCAL_ __attribute__((visibility("hidden")))
#define WS_PRINTF_(at, first) __attribute__((format(printf, at, first)))
#define WS_MUST_USE_ __attribute__((warn_unused_result))
#else
#define WS_EXPORT
#define WS_LOCAL_
#define WS_PRINTF_(at, first)
#define WS_MUST_USE_
#endif

/* The host's table; defined and set by WS_HANDLER. */
extern WS_LOCAL_ const ws_host *ws_host_;

/* The one symbol that a handler exports. */
WS_EXPORT const ws_handler *ws_handler_entry_v1(const ws_host *host);

/* Defines the handler, once in each shared object (C; in C++ see ws_handler.hpp):
 *     WS_HANDLER(.name = "echo", .on_message = on_message);              */
#define WS_HANDLER(...)                                                                \
    const ws_host *ws_host_;                                                           \
    const ws_handler *ws_handler_entry_v1(const ws_host *host)                         \
    {                                                                                  \
        static const ws_handler handler = {                                            \
            .size = sizeof(ws_handler), .abi = WS_ABI, __VA_ARGS__};                   \
        ws_host_ = host;                                                               \
        return host->size >= WS_HOST_LEAST_ ? &handler : NULL;                          \
    }                                                                                  \
    extern const ws_host *ws_host_

/* -------------------------------------------------------------------- bytes */

/* 1 if the bytes are exactly this string, else 0 (also for absent bytes).
 * [any thread] */
static inline int ws_bytes_equal(ws_bytes bytes, const char *string)
{
    size_t size = strlen(string);
    return bytes.data != NULL && bytes.size == size && memcmp(bytes.data, string, size) == 0;
}

/* Removes the first item from a list such as "a, b", as ws_requested_protocols()
 * returns it. 1 and *item is set, or 0 at the end of the list. The item points
 * into the list's bytes. [any thread] */
static inline int ws_list_next(ws_bytes *list, ws_bytes *item)
{
    const char *comma;
    while (list->size > 0 && (*list->data == ' ' || *list->data == '\t' || *list->data == ','))
        list->data++, list->size--;
    if (list->size == 0)
        return 0;
    comma = (const char *)memchr(list->data, ',', list->size);
    item->data = list->data;
    item->size = comma != NULL ? (size_t)(comma - list->data) : list->size;
    list->data += item->size;
    list->size -= item->size;
    while (item->data[item->size - 1] == ' ' || item->data[item->size - 1] == '\t')
        item->size--;
    return 1;
}

/* The name of a result, "WS_E_GONE"; of values >= 0 "WS_OK". [any thread] */
static inline const char *ws_error_name(int32_t result)
{
    static const char *const names[] = {
        "WS_OK",        "WS_E_GONE",  "WS_E_FULL",  "WS_E_TIMEOUT",     "WS_E_DRAINING", "WS_E_INVALID",
        "WS_E_PLACE",   "WS_E_LIMIT", "WS_E_UNSUPPORTED", "WS_E_FAILED", "WS_E_ABSENT",   "WS_E_DENIED",
    };
    if (result >= 0)
        return names[0];
    return result >= WS_E_DENIED ? names[-result] : "an unknown error";
}

/* ------------------------------------------------------- the host, the worker */

/* Name and version of the host, "wshd 1.0.0", for people and logs. [any thread] */
static inline const char *ws_host_version(void)
{
    return WS_HOST_HAS(host_version) ? ws_host_->host_version : "";
}

/* An interface that is not a part of this file, by its name; the owner of the
 * name defines the type of the result. NULL if the host has none of that name.
 * Names of wshd begin with "wshd."; none exists yet. [any thread] */
static inline const void *ws_get_extension(const char *id)
{
    return WS_HOST_HAS(get_extension) ? ws_host_->get_extension(ws_host_, id, strlen(id)) : NULL;
}

/* This worker's number in its pool, from 0. [any thread] */
static inline uint32_t ws_worker(void)
{
    return ws_host_->worker;
}

/* The number of workers in this worker's pool. [any thread] */
static inline uint32_t ws_workers(void)
{
    return WS_HOST_HAS(workers) ? ws_host_->workers(ws_host_) : 1;
}

/* Calls ready(fd, events, arg) on the worker's event loop whenever the
 * descriptor is ready for one of the events (level-triggered, like poll()), so
 * that a client library of a database or a message queue needs no thread.
 * Watching it again replaces events, ready and arg. The descriptor still belongs
 * to the handler, which makes it non-blocking and unwatches it before closing it.
 * ready must not wait; its time is measured and limited like that of a callback,
 * and it may call what any thread may call.
 * Watched descriptors belong to the process: they do not move with a connection,
 * and on_worker_start opens new ones in another process.
 * events: WS_FD_READ, WS_FD_WRITE or both. WS_OK, or WS_E_INVALID (other events,
 * no ready, not a descriptor that can be watched, one of another handler),
 * WS_E_LIMIT (more than 256 of this handler), WS_E_PLACE.
 * [on the thread of the worker's event loop, on_worker_start included] */
static inline int32_t ws_watch_fd(int32_t fd, uint32_t events, ws_ready ready, void *arg)
{
    return WS_HOST_HAS(watch_fd) ? ws_host_->watch_fd(ws_host_, fd, events, ready, arg) : WS_E_UNSUPPORTED;
}

/* Stops watching it; ready is not called any more. WS_OK, or WS_E_INVALID (it
 * is not watched), WS_E_PLACE.
 * [on the thread of the worker's event loop, on_worker_start included] */
static inline int32_t ws_unwatch_fd(int32_t fd)
{
    return WS_HOST_HAS(unwatch_fd) ? ws_host_->unwatch_fd(ws_host_, fd) : WS_E_UNSUPPORTED;
}

/* --------------------------------------------------- log, time, configuration */

/* Nanoseconds of the monotonic clock, from an arbitrary start.
 * [any thread] */
static inline uint64_t ws_now(void)
{
    return ws_host_->now();
}

/* Writes a line to the server's log, marked with the handler's name and, if
 * conn is not 0, with the connection. Cut at 1,023 bytes. level is WS_LOG_....
 * [any thread] */
static inline void ws_log_conn(ws_conn conn, uint32_t level, const char *format, ...) WS_PRINTF_(3, 4);
static inline void ws_log_conn(ws_conn conn, uint32_t level, const char *format, ...)
{
    char    text[1024];
    int     size;
    va_list args;
    va_start(args, format);
    size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (size > 0)
        ws_host_->log(ws_host_, conn, level, text,
                      (size_t)size < sizeof text ? (size_t)size : sizeof text - 1);
}

/* The same without a connection. [any thread] */
static inline void ws_log(uint32_t level, const char *format, ...) WS_PRINTF_(2, 3);
static inline void ws_log(uint32_t level, const char *format, ...)
{
    char    text[1024];
    int     size;
    va_list args;
    va_start(args, format);
    size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (size > 0)
        ws_host_->log(ws_host_, 0, level, text,
                      (size_t)size < sizeof text ? (size_t)size : sizeof text - 1);
}

/* A value of the handler's own section of the configuration; absent if it is
 * not set. Valid as long as the process. [any thread] */
static inline ws_bytes ws_config(const char *key)
{
    return ws_host_->config(ws_host_, key, strlen(key));
}

/* The index-th setting of that section: 1 and *key, *value are set, or 0: there
 * are no more. Valid as long as the process. [any thread] */
static inline int32_t ws_config_at(size_t index, ws_bytes *key, ws_bytes *value)
{
    return ws_host_->config_at(ws_host_, index, key, value);
}

/* ------------------------------------------------------------------ request */

/* Path and query of the request [3], "/chat?room=1". Valid for the life of the
 * connection. [in a callback of this connection] */
static inline ws_bytes ws_resource(ws_conn conn)
{
    return ws_host_->resource(conn);
}

/* The resource up to its "?". Valid for the life of the connection.
 * [in a callback of this connection] */
static inline ws_bytes ws_path(ws_conn conn)
{
    return ws_host_->path(conn);
}

/* The resource after its "?"; absent without one. Valid for the life of the
 * connection. [in a callback of this connection] */
static inline ws_bytes ws_query(ws_conn conn)
{
    return ws_host_->query(conn);
}

/* Decodes the first parameter of this name in the query, "room" in
 * "?room=blue%20moon", into text[0..size), followed by a NUL. "+" is a space;
 * a "%" without two hexadecimal digits is kept. The result may not be UTF-8.
 * Its length, or
 *   WS_E_ABSENT    there is no such parameter (or the connection is gone)
 *   WS_E_LIMIT     it is longer than size - 1
 *   WS_E_INVALID   it contains a NUL ("%00")
 *   WS_E_PLACE
 * [in a callback of this connection] */
static inline int32_t ws_query_param(ws_conn conn, const char *name, char *text, size_t size)
{
    return WS_HOST_HAS(query_param) ? ws_host_->query_param(conn, name, strlen(name), text, size)
                                    : WS_E_UNSUPPORTED;
}

/* The same for a cookie [RFC 6265, 4.2]: the value without the quotes around it, with %XX decoded
 * ("+" stays). WS_E_ABSENT also when the request was not kept.
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline int32_t ws_cookie(ws_conn conn, const char *name, char *text, size_t size)
{
    return WS_HOST_HAS(cookie) ? ws_host_->cookie(conn, name, strlen(name), text, size) : WS_E_UNSUPPORTED;
}

/* Host and port that the client asked for [4.1], from the target or the Host header.
 * Absent when the request was not kept.
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline ws_bytes ws_authority(ws_conn conn)
{
    return ws_host_->authority(conn);
}

/* The authenticated user (a name in htpasswd, the subject of a token [RFC 7519,
 * 4.1.2]); absent if the server requires none. Valid for the life of the connection.
 * [in a callback of this connection] */
static inline ws_bytes ws_remote_user(ws_conn conn)
{
    ws_bytes absent = {NULL, 0};
    return WS_HOST_HAS(remote_user) ? ws_host_->remote_user(conn) : absent;
}

/* The Origin header [4.1, 10.2], as sent; absent without one. Valid for the life of the
 * connection. [in a callback of this connection] */
static inline ws_bytes ws_origin(ws_conn conn)
{
    return ws_host_->origin(conn);
}

/* The method, "GET". Absent when the request was not kept.
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline ws_bytes ws_method(ws_conn conn)
{
    return ws_host_->method(conn);
}

/* The value of the first header of this name, whose case does not matter, without
 * white space around it; absent if there is none or the request was not kept. It
 * may not be UTF-8.
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline ws_bytes ws_header(ws_conn conn, const char *name)
{
    return ws_host_->header(conn, name, strlen(name));
}

/* The index-th header in the order sent: 1 and *name, *value are set, or 0:
 * there are no more (or the request was not kept).
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline int32_t ws_header_at(ws_conn conn, size_t index, ws_bytes *name, ws_bytes *value)
{
    return ws_host_->header_at(conn, index, name, value);
}

/* The subprotocols that the client offers [11.3.4], in its order: "a, b"; see
 * ws_list_next(). Absent if it offers none.
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline ws_bytes ws_requested_protocols(ws_conn conn)
{
    return ws_host_->requested_protocols(conn);
}

/* The extensions that the client offers [9.1], as in its header (several headers are
 * joined with ", "). Absent if it offers none.
 * [in do_extra_handshake; with WS_KEEP_REQUEST in any callback of this connection] */
static inline ws_bytes ws_requested_extensions(ws_conn conn)
{
    return ws_host_->requested_extensions(conn);
}

/* The version of the protocol [4.4]: 13. 0 if the connection is gone.
 * [in a callback of this connection] */
static inline uint32_t ws_version(ws_conn conn)
{
    return ws_host_->version(conn);
}

/* The peer's address: behind a trusted proxy that of the client, with port 0 if
 * it is not known. WS_OK, or WS_E_GONE, WS_E_PLACE (*address is all zero then).
 * [in a callback of this connection] */
static inline int32_t ws_remote_address(ws_conn conn, ws_address *address)
{
    return ws_host_->remote_address(conn, address, sizeof *address);
}

/* The local address of the connection. Results as above.
 * [in a callback of this connection] */
static inline int32_t ws_local_address(ws_conn conn, ws_address *address)
{
    return ws_host_->local_address(conn, address, sizeof *address);
}

/* A fact about the peer's TLS connection, WS_TLS_...; absent without TLS or if
 * not known. [in a callback of this connection] */
static inline ws_bytes ws_tls_fact(ws_conn conn, uint32_t which)
{
    return ws_host_->tls_fact(conn, which);
}

/* -------------------------------------------------------------------- reply
 *
 * All of these: [in do_extra_handshake; after WS_LATER any thread], which
 * includes callbacks and timers of other connections. After WS_LATER the first
 * call that accepts, rejects or aborts finishes the handshake.
 * Common results: WS_E_GONE (finished, or the peer has left), WS_E_PLACE. */

/* Chooses one of the offered subprotocols [4.2.2], or none with NULL. WS_OK, or
 * WS_E_INVALID: it was not offered.
 * [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_set_protocol(ws_handshake *hs, const char *protocol)
{
    return ws_host_->set_protocol(hs, protocol, protocol != NULL ? strlen(protocol) : 0);
}

/* Adds a header to the reply, whether 101 or an error. Both are copied. WS_OK, or
 * WS_E_INVALID (not a header name; a control character such as CR, LF in the
 * value; a header that the handshake itself writes), WS_E_LIMIT (more than 64
 * headers or 16 KiB). [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_add_header(ws_handshake *hs, const char *name, const char *value)
{
    return ws_host_->add_header(hs, name, strlen(name), value, strlen(value));
}

/* How to negotiate permessage-deflate [RFC 7692, 7.1], if the client offers it,
 * instead of the server's settings. WS_OK, or WS_E_INVALID (a value out of its
 * range), WS_E_UNSUPPORTED (a member that this host does not know is not 0).
 * [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_configure_deflate(ws_handshake *hs, const ws_deflate_options *options)
{
    return ws_host_->configure_deflate(hs, options);
}

/* Uses no extension on this connection. WS_OK.
 * [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_refuse_extensions(ws_handshake *hs)
{
    return ws_host_->refuse_extensions(hs);
}

/* Accepts: WS_OK. Needed only to finish after WS_LATER; in do_extra_handshake
 * returning WS_OK does the same. WS_E_INVALID once it was rejected.
 * [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_accept(ws_handshake *hs)
{
    return ws_host_->accept(hs);
}

/* Accepts and then closes at once: a browser's script can read the reason, but not
 * that of a rejected handshake. No further callback runs. code and reason as in
 * ws_close(). WS_OK, to be returned from do_extra_handshake, or
 * WS_E_INVALID. [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_accept_and_close(ws_handshake *hs, uint32_t code, const char *reason)
{
    return ws_host_->accept_and_close(hs, code, reason, reason != NULL ? strlen(reason) : 0);
}

/* Rejects [4.2.2] with a status from 300 to 599 and a short text. WS_REJECTED, to be
 * returned from do_extra_handshake, or WS_E_INVALID.
 * From this call on the handshake cannot be accepted: if do_extra_handshake
 * returns WS_OK nevertheless, it is rejected (with 500 if this call failed) and
 * an error of the handler is logged; a strict host aborts.
 * [in do_extra_handshake; after WS_LATER any thread] */
WS_MUST_USE_ static inline int32_t ws_reject(ws_handshake *hs, uint32_t status)
{
    return ws_host_->reject(hs, status, NULL, 0, NULL, 0);
}

/* The same with a body of the given media type, copied; at most 64 KiB
 * (WS_E_LIMIT). [in do_extra_handshake; after WS_LATER any thread] */
WS_MUST_USE_ static inline int32_t ws_reject_body(ws_handshake *hs, uint32_t status, const char *type,
                                     const void *body, size_t size)
{
    return ws_host_->reject(hs, status, type, strlen(type), (const char *)body, size);
}

/* Drops the connection without any reply. WS_ABORTED, to be returned from
 * do_extra_handshake. As with ws_reject(), it cannot be accepted any more.
 * [in do_extra_handshake; after WS_LATER any thread] */
WS_MUST_USE_ static inline int32_t ws_abort_handshake(ws_handshake *hs)
{
    return ws_host_->abort_handshake(hs);
}

/* ws_set_user_owned() and ws_set_state() by the handshake, for the thread that
 * finishes it. A pointer that is replaced or refused is released on the thread of
 * this call. WS_OK, WS_E_LIMIT (the state is too large).
 * [in do_extra_handshake; after WS_LATER any thread] */
static inline int32_t ws_attach_user(ws_handshake *hs, void *user, void (*release)(void *arg))
{
    if (WS_HOST_HAS(attach_user))
        return ws_host_->attach_user(hs, user, release);
    if (release != NULL)
        release(user);
    return WS_E_UNSUPPORTED;
}
static inline int32_t ws_attach_state(ws_handshake *hs, const void *data, size_t size)
{
    return WS_HOST_HAS(attach_state) ? ws_host_->attach_state(hs, data, size) : WS_E_UNSUPPORTED;
}

/* -------------------------------------------------- negotiated parameters */

/* The chosen subprotocol; absent if none. Valid for the life of the connection.
 * [in a callback of this connection] */
static inline ws_bytes ws_protocol(ws_conn conn)
{
    return ws_host_->protocol(conn);
}

/* The extensions in use [9.1], as in the reply's header; absent if none, and in
 * do_extra_handshake. [in a callback of this connection] */
static inline ws_bytes ws_extensions(ws_conn conn)
{
    return ws_host_->extensions(conn);
}

/* 1 if permessage-deflate is in use, else 0. [in a callback of this connection] */
static inline int32_t ws_deflate(ws_conn conn)
{
    return ws_host_->deflate(conn);
}

/* --------------------------------------------------------------------- data */

/* Waits for the next message, at most timeout_ms milliseconds or WS_FOREVER.
 * Posted functions and timers of the connection run in this call.
 *   WS_MESSAGE     *msg is set, valid until the next call
 *   WS_CLOSED      the connection is closing (ws_close_code() tells how, 1006
 *                  when it was lost); return soon. With WS_RESUMABLE also when
 *                  it moves to another process: the result of transfer_data
 *                  is ignored then, and on_close with WS_BY_MOVE follows
 *   WS_E_TIMEOUT   no message in that time
 *   WS_E_DRAINING  the server wants the connection to end; returned once, messages
 *                  can still be received
 *   WS_E_GONE, WS_E_PLACE
 * [in transfer_data] */
static inline int32_t ws_receive(ws_conn conn, ws_message *msg, int64_t timeout_ms)
{
    return ws_host_->receive(conn, msg, timeout_ms);
}

/* Sends a message [6.1] of type WS_TEXT (must be UTF-8) or WS_BINARY. Messages of
 * one thread keep their order.
 *   WS_OK          queued or sent
 *   WS_E_FULL      the queue is above its high mark; nothing was queued. In the
 *                  event style on_writable follows. On the thread of a blocking
 *                  connection the call waits instead.
 *   WS_E_INVALID   not UTF-8, another type, another type than the fragments
 *                  before, unknown flags
 *   WS_E_GONE
 *   WS_E_PLACE     the handshake is not finished
 * [any thread] */
static inline int32_t ws_send(ws_conn conn, uint32_t type, const void *data, size_t size)
{
    return ws_host_->send(conn, type, data, size, 0);
}

/* The same with flags: WS_MORE sends a fragment [5.4], whose message continues with
 * the next send of the same type (a text may be split within a character);
 * WS_UNCOMPRESSED, in the first fragment, turns compression off for the message.
 * Results as of ws_send(). [any thread] */
static inline int32_t ws_send_flags(ws_conn conn, uint32_t type, const void *data, size_t size,
                                    uint32_t flags)
{
    return ws_host_->send(conn, type, data, size, flags);
}

/* A NUL-terminated text. Results as of ws_send(). [any thread] */
static inline int32_t ws_send_text(ws_conn conn, const char *text)
{
    return ws_host_->send(conn, WS_TEXT, text, strlen(text), 0);
}

/* Sends without a copy: data must not change until release(arg) is called. That
 * happens exactly once, whatever the result, possibly before this call returns
 * and possibly on another thread. Results as of ws_send(). [any thread] */
static inline int32_t ws_send_owned(ws_conn conn, uint32_t type, const void *data, size_t size,
                                    uint32_t flags, void (*release)(void *arg), void *arg)
{
    return ws_host_->send_owned(conn, type, data, size, flags, release, arg);
}

/* For handlers that test clients: sends octets unchanged, in order with messages,
 * even if they violate the protocol. In do_extra_handshake, and after
 * WS_LATER until the handshake is finished, they replace the server's
 * reply (at most 64 KiB, else WS_E_LIMIT): after WS_OK the connection is open,
 * otherwise it is closed once they are sent. WS_E_DENIED unless the
 * handler's section of the configuration says "raw = true". Else results as of
 * ws_send(). [any thread] */
static inline int32_t ws_send_raw(ws_conn conn, const void *data, size_t size)
{
    return WS_HOST_HAS(send_raw) ? ws_host_->send_raw(ws_host_, conn, data, size) : WS_E_UNSUPPORTED;
}

/* Sends a Ping [5.5.2] with at most 125 bytes. WS_OK, or WS_E_INVALID (too long),
 * WS_E_FULL, WS_E_GONE. on_pong follows. [any thread] */
static inline int32_t ws_ping(ws_conn conn, const void *data, size_t size)
{
    return ws_host_->ping(conn, data, size);
}

/* Bytes in the send queue, not yet written to the socket; 0 if the connection is
 * gone. [any thread] */
static inline size_t ws_buffered(ws_conn conn)
{
    return ws_host_->buffered(conn);
}

/* Stops and resumes reading from the peer, so that its sending slows down. From
 * the end of the running callback no message is delivered until reading resumes.
 * While it is stopped no Close and no Pong is read, and idle and pong timeouts
 * are suspended. The host also stops reading while the send queue is above its
 * high mark. After a move to another process the connection is read again.
 * WS_OK, WS_E_GONE. [any thread] */
static inline int32_t ws_pause(ws_conn conn)
{
    return ws_host_->pause(conn);
}
static inline int32_t ws_resume(ws_conn conn)
{
    return ws_host_->resume(conn);
}

/* The type of the last message received: WS_TEXT, WS_BINARY, or 0 before the
 * first. [in a callback of this connection] */
static inline uint32_t ws_last_opcode(ws_conn conn)
{
    return ws_host_->last_opcode(conn);
}

/* --------------------------------------------------------- time and threads
 *
 * With conn 0 these belong to the worker instead of a connection: task(0, arg)
 * runs on the worker's event loop, in both styles, and must not wait. Timers and
 * posts of on_worker_start begin once the worker serves. */

/* Calls task(conn, arg) once, on the thread of the connection, after delay_ms
 * milliseconds; never, if the connection ends or moves to another process before.
 * The timer's number, > 0, or WS_E_LIMIT (more than 16 on a connection, or 256 of
 * a handler without one), WS_E_INVALID (no task), WS_E_GONE, WS_E_PLACE. In the
 * blocking style timers run in ws_receive(). A timer set in do_extra_handshake
 * runs after on_open at the earliest.
 * [in a callback of this connection; with conn 0 on the thread of the event loop] */
static inline int64_t ws_set_timer(ws_conn conn, uint64_t delay_ms, ws_task task, void *arg)
{
    return ws_host_->set_timer(ws_host_, conn, delay_ms, 0, task, arg);
}

/* The same repeatedly, every period_ms milliseconds (at least 1), until it is
 * cleared. Calls that could not run in time are skipped.
 * [in a callback of this connection; with conn 0 on the thread of the event loop] */
static inline int64_t ws_set_interval(ws_conn conn, uint64_t period_ms, ws_task task, void *arg)
{
    return ws_host_->set_timer(ws_host_, conn, period_ms, period_ms > 0 ? period_ms : 1, task, arg);
}

/* Stops a timer. WS_OK, or WS_E_INVALID (it has run, or there is none of that
 * number), WS_E_GONE, WS_E_PLACE.
 * [in a callback of this connection; with conn 0 on the thread of the event loop] */
static inline int32_t ws_clear_timer(ws_conn conn, int64_t timer)
{
    return ws_host_->clear_timer(ws_host_, conn, timer);
}

/* Calls task(conn, arg) soon on the thread of the connection: in the blocking
 * style in ws_receive(), and not before on_open. After WS_OK it is called exactly
 * once: if the connection ends before, on some thread with a conn that is gone, so
 * that arg can be freed; with conn 0, before on_worker_stop at the latest. After
 * WS_E_LIMIT (1,024 are waiting), WS_E_INVALID (no task) or WS_E_GONE it is not
 * called. [any thread] */
static inline int32_t ws_post(ws_conn conn, ws_task task, void *arg)
{
    return ws_host_->post(ws_host_, conn, task, arg);
}

/* ------------------------------------------------------------------ closing */

/* Begins the closing handshake [7.1.2], or in passive_closing_handshake chooses the
 * answer. code: 1000 to 1003, 1007 to 1014, 3000 to 4999, or 1005 for a frame
 * without code; reason: UTF-8 of at most 123 bytes, or NULL. Queued messages are
 * still sent; messages that the peer still sends are dropped. WS_OK, or
 * WS_E_INVALID, WS_E_GONE. [any thread] */
static inline int32_t ws_close(ws_conn conn, uint32_t code, const char *reason)
{
    return ws_host_->close(conn, code, reason, reason != NULL ? strlen(reason) : 0);
}

/* Drops the connection at once, without a Close frame; the send queue is
 * discarded. WS_OK, WS_E_GONE. [any thread] */
static inline int32_t ws_abort(ws_conn conn)
{
    return ws_host_->abort(conn);
}

/* The code that the peer sent: 1005 if its Close frame had none, 1006 if the
 * connection ended without one, 0 while it is open.
 * [in a callback of this connection] */
static inline uint32_t ws_close_code(ws_conn conn)
{
    return ws_host_->close_code(conn);
}

/* The reason that the peer sent, valid UTF-8; absent without one.
 * [in a callback of this connection] */
static inline ws_bytes ws_close_reason(ws_conn conn)
{
    return ws_host_->close_reason(conn);
}

/* ----------------------------------------------------- data of a connection */

/* A pointer for the handler; NULL at first. It can be set from do_extra_handshake
 * on, and does not move: in another process it is NULL again. ws_set_user: WS_OK,
 * WS_E_GONE, WS_E_PLACE. [in a callback of this connection] */
static inline int32_t ws_set_user(ws_conn conn, void *user)
{
    return ws_host_->set_user(conn, user, NULL);
}

/* The same with a function that frees it: release(user) is called exactly once,
 * whatever the result: when another pointer is set, after on_close, or after a
 * handshake that ends without an open connection; always on the thread of the
 * connection, except for ws_attach_user(). Not called when the worker crashes.
 * [in a callback of this connection] */
static inline int32_t ws_set_user_owned(ws_conn conn, void *user, void (*release)(void *arg))
{
    return ws_host_->set_user(conn, user, release);
}
static inline void *ws_user(ws_conn conn)
{
    return ws_host_->user(conn);
}

/* Attaches bytes (copied, at most WS_STATE_MAX; size 0 detaches) that follow the
 * connection to another process through reload, upgrade, and the crash of a
 * worker. WS_OK, or WS_E_LIMIT (too large), WS_E_GONE, WS_E_PLACE.
 * [in a callback of this connection] */
static inline int32_t ws_set_state(ws_conn conn, const void *data, size_t size)
{
    return ws_host_->set_state(conn, data, size);
}

/* The attached bytes; absent if there are none. Valid until the next
 * ws_set_state(). [in a callback of this connection] */
static inline ws_bytes ws_state(ws_conn conn)
{
    return ws_host_->state(conn);
}

/* 1 if this connection was opened in another process and moved to this one, where
 * on_open is called again; else 0. [in a callback of this connection] */
static inline int32_t ws_is_resumed(ws_conn conn)
{
    return ws_host_->is_resumed(conn);
}

/* ------------------------------------------------------------------- topics
 *
 * A message that is published to a topic reaches all connections that are
 * subscribed to it, in every worker of every pool that serves the handler.
 * Handlers share topics only if their setting topics has the same value. All
 * subscribers of a topic get its messages in the same order, each at most once. A
 * subscription moves with its connection; messages published meanwhile are
 * delivered afterwards, or counted as missed. A topic exists as long as it is
 * used. Its name is UTF-8 without control characters, of at most WS_TOPIC_MAX
 * bytes. */

/* Subscribes a connection: it gets messages published after this call. A second
 * call only changes the flags. flags is WS_DROP or 0: a connection whose send queue
 * is full when a message arrives is closed with 1013, or with WS_DROP misses the
 * message (on_writable follows, and ws_missed() counts it).
 *   WS_OK
 *   WS_E_INVALID  not a valid name of a topic, unknown flags
 *   WS_E_LIMIT    the connection or the worker has too many subscriptions
 *   WS_E_GONE     the connection is not open yet, closing or gone
 * [any thread] */
static inline int32_t ws_subscribe(ws_conn conn, const char *topic, uint32_t flags)
{
    return WS_HOST_HAS(subscribe) ? ws_host_->subscribe(conn, topic, strlen(topic), flags) : WS_E_UNSUPPORTED;
}

/* Ends a subscription, as does the end of the connection. WS_OK, or WS_E_INVALID
 * (there is none), WS_E_GONE. [any thread] */
static inline int32_t ws_unsubscribe(ws_conn conn, const char *topic)
{
    return WS_HOST_HAS(unsubscribe) ? ws_host_->unsubscribe(conn, topic, strlen(topic)) : WS_E_UNSUPPORTED;
}

/* Sends a message of type WS_TEXT (must be UTF-8) or WS_BINARY to all subscribers
 * of a topic. It does not wait: the message may be lost if the bus process or the
 * worker dies.
 * flags: WS_NOT_SELF, WS_UNCOMPRESSED.
 *   WS_OK         queued, also without subscribers
 *   WS_E_FULL     the queue to the bus is full; nothing was published
 *   WS_E_INVALID  not a valid name of a topic, not UTF-8, another type, unknown flags
 *   WS_E_LIMIT    more than WS_PUBLISH_MAX bytes
 *   WS_E_PLACE    the worker does not serve yet
 * [any thread] */
static inline int32_t ws_publish(const char *topic, uint32_t type, const void *data, size_t size,
                                 uint32_t flags)
{
    return WS_HOST_HAS(publish) ? ws_host_->publish(ws_host_, topic, strlen(topic), type, data, size, flags)
                                : WS_E_UNSUPPORTED;
}

/* The number of subscribed connections on this machine; of other workers as last
 * reported, and only while this worker has subscribers. [any thread] */
static inline uint64_t ws_subscribers(const char *topic)
{
    return WS_HOST_HAS(subscribers) ? ws_host_->subscribers(ws_host_, topic, strlen(topic)) : 0;
}

/* The number of messages of its topics that the connection has missed since the
 * last call. [any thread] */
static inline uint64_t ws_missed(ws_conn conn)
{
    return WS_HOST_HAS(missed) ? ws_host_->missed(conn) : 0;
}

#ifdef __cplusplus
}
#endif

#endif /* WS_HANDLER_H */
