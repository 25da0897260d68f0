/*
 * chat in C++: a message in a room is sent to all its other members.
 *
 *     c++ -shared -fPIC -fvisibility=hidden chat_cpp_wsh.cc -o chat_cpp_wsh.so
 *     ws://127.0.0.1:8080/chat_cpp?kitchen
 */
#include <ws_handler.hpp>

namespace {

class member {
public:
    explicit member(ws::conn conn) : room_(conn.query()) { conn.subscribe(room_ = room_.empty() ? "lobby" : room_); }

    void on_message(ws::conn conn, const ws::message &msg)
    {
        if (ws::publish(room_, msg, WS_NOT_SELF) == WS_E_FULL)
            conn.close(WS_CLOSE_TRY_LATER, "too much is being said");
    }

private:
    std::string room_;
};

} // namespace

WS_HANDLER_CPP(member, name = "chat_cpp");
