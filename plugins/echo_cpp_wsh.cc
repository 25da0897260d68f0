/*
 * echo in C++, with ws_handler.hpp: each connection has an object of its own.
 *
 *     c++ -shared -fPIC -fvisibility=hidden -fno-gnu-unique echo_cpp_wsh.cc -o echo_cpp_wsh.so
 *     ws://127.0.0.1:8080/echo_cpp
 */
#include <ws_handler.hpp>

namespace {

class echo {
public:
    void on_message(ws::conn conn, const ws::message &msg)
    {
        echoed_++;
        if (conn.send(msg) == WS_E_FULL)
            conn.close(WS_CLOSE_TRY_LATER, "you do not read");
        else if (msg.is_text() && msg == "Goodbye")
            conn.close();
    }

    void on_close(ws::conn conn, uint32_t, uint32_t)
    {
        conn.log(WS_LOG_DEBUG, "echoed " + std::to_string(echoed_) + " messages");
    }

private:
    unsigned long echoed_ = 0;
};

} // namespace

WS_HANDLER_CPP(echo, name = "echo_cpp", protocols = "echo");
