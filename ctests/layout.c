/*
 * Prints where every member of every public struct lies, and what every constant
 * is, for tests/abi.rs to compare with the mirror in Rust:
 *
 *     struct NAME SIZE ALIGNMENT
 *     member STRUCT NAME OFFSET SIZE
 *     constant NAME VALUE
 */
#include <stdio.h>
#include <ws_handler.h>

#define STRUCT(s) \
    printf("struct " #s " %zu %zu\n", sizeof(s), offsetof(struct { char c; s whole; }, whole))
#define MEMBER(s, m) printf("member " #s " " #m " %zu %zu\n", offsetof(s, m), sizeof(((s *)0)->m))
#define CONSTANT(c) printf("constant " #c " %lld\n", (long long)(c))

int main(void)
{
    const ws_deflate_options defaults = WS_DEFLATE_DEFAULTS;

    printf("defaults %zu %u %u %u %u %u %u\n", defaults.size, defaults.server_max_window_bits,
           defaults.client_max_window_bits, defaults.server_no_context_takeover,
           defaults.client_no_context_takeover, defaults.threshold, defaults.level);

    STRUCT(ws_bytes);
    MEMBER(ws_bytes, data);
    MEMBER(ws_bytes, size);

    STRUCT(ws_message);
    MEMBER(ws_message, type);
    MEMBER(ws_message, flags);
    MEMBER(ws_message, data);
    MEMBER(ws_message, size);

    STRUCT(ws_address);
    MEMBER(ws_address, family);
    MEMBER(ws_address, port);
    MEMBER(ws_address, text);

    STRUCT(ws_deflate_options);
    MEMBER(ws_deflate_options, size);
    MEMBER(ws_deflate_options, server_max_window_bits);
    MEMBER(ws_deflate_options, client_max_window_bits);
    MEMBER(ws_deflate_options, server_no_context_takeover);
    MEMBER(ws_deflate_options, client_no_context_takeover);
    MEMBER(ws_deflate_options, threshold);
    MEMBER(ws_deflate_options, level);

    STRUCT(ws_handler);
    MEMBER(ws_handler, size);
    MEMBER(ws_handler, abi);
    MEMBER(ws_handler, flags);
    MEMBER(ws_handler, name);
    MEMBER(ws_handler, version);
    MEMBER(ws_handler, protocols);
    MEMBER(ws_handler, on_worker_start);
    MEMBER(ws_handler, on_worker_stop);
    MEMBER(ws_handler, do_extra_handshake);
    MEMBER(ws_handler, on_open);
    MEMBER(ws_handler, transfer_data);
    MEMBER(ws_handler, on_message);
    MEMBER(ws_handler, passive_closing_handshake);
    MEMBER(ws_handler, on_close);
    MEMBER(ws_handler, on_pong);
    MEMBER(ws_handler, on_writable);
    MEMBER(ws_handler, on_drain);

    STRUCT(ws_host);
    MEMBER(ws_host, size);
    MEMBER(ws_host, abi);
    MEMBER(ws_host, worker);
    MEMBER(ws_host, log);
    MEMBER(ws_host, now);
    MEMBER(ws_host, config);
    MEMBER(ws_host, config_at);
    MEMBER(ws_host, resource);
    MEMBER(ws_host, path);
    MEMBER(ws_host, query);
    MEMBER(ws_host, authority);
    MEMBER(ws_host, origin);
    MEMBER(ws_host, method);
    MEMBER(ws_host, header);
    MEMBER(ws_host, header_at);
    MEMBER(ws_host, requested_protocols);
    MEMBER(ws_host, requested_extensions);
    MEMBER(ws_host, version);
    MEMBER(ws_host, remote_address);
    MEMBER(ws_host, local_address);
    MEMBER(ws_host, tls_fact);
    MEMBER(ws_host, set_protocol);
    MEMBER(ws_host, add_header);
    MEMBER(ws_host, configure_deflate);
    MEMBER(ws_host, refuse_extensions);
    MEMBER(ws_host, accept);
    MEMBER(ws_host, accept_and_close);
    MEMBER(ws_host, reject);
    MEMBER(ws_host, abort_handshake);
    MEMBER(ws_host, protocol);
    MEMBER(ws_host, extensions);
    MEMBER(ws_host, deflate);
    MEMBER(ws_host, receive);
    MEMBER(ws_host, send);
    MEMBER(ws_host, send_owned);
    MEMBER(ws_host, ping);
    MEMBER(ws_host, buffered);
    MEMBER(ws_host, pause);
    MEMBER(ws_host, resume);
    MEMBER(ws_host, last_opcode);
    MEMBER(ws_host, set_timer);
    MEMBER(ws_host, clear_timer);
    MEMBER(ws_host, post);
    MEMBER(ws_host, close);
    MEMBER(ws_host, abort);
    MEMBER(ws_host, close_code);
    MEMBER(ws_host, close_reason);
    MEMBER(ws_host, set_user);
    MEMBER(ws_host, user);
    MEMBER(ws_host, set_state);
    MEMBER(ws_host, state);
    MEMBER(ws_host, is_resumed);
    MEMBER(ws_host, attach_user);
    MEMBER(ws_host, attach_state);
    MEMBER(ws_host, query_param);
    MEMBER(ws_host, cookie);
    MEMBER(ws_host, host_version);
    MEMBER(ws_host, workers);
    MEMBER(ws_host, watch_fd);
    MEMBER(ws_host, unwatch_fd);
    MEMBER(ws_host, get_extension);
    MEMBER(ws_host, send_raw);
    MEMBER(ws_host, subscribe);
    MEMBER(ws_host, unsubscribe);
    MEMBER(ws_host, publish);
    MEMBER(ws_host, subscribers);
    MEMBER(ws_host, missed);
    MEMBER(ws_host, remote_user);

    CONSTANT(WS_ABI_MAJOR);
    CONSTANT(WS_ABI_MINOR);
    CONSTANT(WS_ABI);
    CONSTANT(WS_TEXT);
    CONSTANT(WS_BINARY);
    CONSTANT(WS_FIRST);
    CONSTANT(WS_LAST);
    CONSTANT(WS_MORE);
    CONSTANT(WS_UNCOMPRESSED);
    CONSTANT(WS_FD_READ);
    CONSTANT(WS_FD_WRITE);
    CONSTANT(WS_FD_HANGUP);
    CONSTANT(WS_UNIX);
    CONSTANT(WS_IPV4);
    CONSTANT(WS_IPV6);
    CONSTANT(WS_OK);
    CONSTANT(WS_CLOSED);
    CONSTANT(WS_MESSAGE);
    CONSTANT(WS_REJECTED);
    CONSTANT(WS_ABORTED);
    CONSTANT(WS_LATER);
    CONSTANT(WS_E_GONE);
    CONSTANT(WS_E_FULL);
    CONSTANT(WS_E_TIMEOUT);
    CONSTANT(WS_E_DRAINING);
    CONSTANT(WS_E_INVALID);
    CONSTANT(WS_E_PLACE);
    CONSTANT(WS_E_LIMIT);
    CONSTANT(WS_E_UNSUPPORTED);
    CONSTANT(WS_E_FAILED);
    CONSTANT(WS_E_ABSENT);
    CONSTANT(WS_E_DENIED);
    CONSTANT(WS_CLOSE_NORMAL);
    CONSTANT(WS_CLOSE_GOING_AWAY);
    CONSTANT(WS_CLOSE_PROTOCOL_ERROR);
    CONSTANT(WS_CLOSE_UNSUPPORTED);
    CONSTANT(WS_CLOSE_NO_CODE);
    CONSTANT(WS_CLOSE_ABNORMAL);
    CONSTANT(WS_CLOSE_INVALID_DATA);
    CONSTANT(WS_CLOSE_POLICY);
    CONSTANT(WS_CLOSE_TOO_BIG);
    CONSTANT(WS_CLOSE_INTERNAL_ERROR);
    CONSTANT(WS_CLOSE_RESTART);
    CONSTANT(WS_CLOSE_TRY_LATER);
    CONSTANT(WS_BY_PEER);
    CONSTANT(WS_BY_HANDLER);
    CONSTANT(WS_BY_HOST);
    CONSTANT(WS_BY_MOVE);
    CONSTANT(WS_TLS_VERSION);
    CONSTANT(WS_TLS_CIPHER);
    CONSTANT(WS_TLS_SERVER_NAME);
    CONSTANT(WS_TLS_PEER_SUBJECT);
    CONSTANT(WS_TLS_ALPN);
    CONSTANT(WS_TLS_PEER_CHAIN);
    CONSTANT(WS_TLS_RESUMED);
    CONSTANT(WS_LOG_FINE);
    CONSTANT(WS_LOG_DEBUG);
    CONSTANT(WS_LOG_INFO);
    CONSTANT(WS_LOG_WARN);
    CONSTANT(WS_LOG_ERROR);
    CONSTANT(WS_LOG_CRITICAL);
    CONSTANT(WS_FOREVER);
    CONSTANT(WS_STATE_MAX);
    CONSTANT(WS_TOPIC_MAX);
    CONSTANT(WS_PUBLISH_MAX);
    CONSTANT(WS_NOT_SELF);
    CONSTANT(WS_DROP);
    CONSTANT(WS_KEEP_REQUEST);
    CONSTANT(WS_STREAM);
    CONSTANT(WS_NO_EXTENSIONS);
    CONSTANT(WS_RESUMABLE);
    return 0;
}
