/* plugins/echo_wsh.c, unit-tested without a server. */
#include "fake_host.h"

#include "../plugins/echo_wsh.c"

static int failures;

#define CHECK(condition) \
    ((condition) ? (void)0 : (void)(failures++, fprintf(stderr, "line %d: %s\n", __LINE__, #condition)))

static const ws_handler *handler;

static void receive(uint32_t type, const char *data, size_t size)
{
    ws_message msg = {type, WS_FIRST | WS_LAST, data, size};

    handler->on_message(1, &msg);
}

static void messages_come_back_as_they_are(void)
{
    fake_reset();
    receive(WS_TEXT, "hello", 5);
    CHECK(fake.sent == 1 && fake.sent_type == WS_TEXT);
    CHECK(fake.sent_size == 5 && memcmp(fake.sent_data, "hello", 5) == 0);
    receive(WS_BINARY, "\0\1\2", 3);
    CHECK(fake.sent == 2 && fake.sent_type == WS_BINARY);
    CHECK(fake.sent_size == 3 && memcmp(fake.sent_data, "\0\1\2", 3) == 0);
    receive(WS_TEXT, "", 0);
    CHECK(fake.sent == 3 && fake.sent_size == 0);
    CHECK(fake.closed == 0);
}

static void goodbye_is_sent_back_and_closes(void)
{
    fake_reset();
    receive(WS_TEXT, "Goodbye", 7);
    CHECK(fake.sent == 1 && fake.closed == 1 && fake.close_code == 1000);
}

static void only_the_text_goodbye_closes(void)
{
    fake_reset();
    receive(WS_BINARY, "Goodbye", 7);
    receive(WS_TEXT, "Goodbye!", 8);
    receive(WS_TEXT, "goodbye", 7);
    CHECK(fake.sent == 3 && fake.closed == 0);
}

static void a_peer_that_does_not_read_is_sent_away(void)
{
    fake_reset();
    fake.send_result = WS_E_FULL;
    receive(WS_TEXT, "hello", 5);
    CHECK(fake.sent == 0 && fake.closed == 1 && fake.close_code == 1013);
}

int main(void)
{
    handler = ws_handler_entry_v1(&fake_host);
    CHECK(handler->size == sizeof(ws_handler) && handler->abi == WS_ABI);
    CHECK(strcmp(handler->name, "echo") == 0 && handler->transfer_data == NULL);

    messages_come_back_as_they_are();
    goodbye_is_sent_back_and_closes();
    only_the_text_goodbye_closes();
    a_peer_that_does_not_read_is_sent_away();
    return failures != 0;
}
