// Mistake: compiled without -fvisibility=hidden and -fno-gnu-unique, the counter is one for all handlers that have it.
#include <ws_handler.hpp>

template <class T> struct counted {
    static int count;
};
template <class T> int counted<T>::count;

struct shared_static {
    void on_message(ws::conn conn, const ws::message &message)
    {
        if (++counted<int>::count < 1000)
            conn.send(message);
    }
};

WS_HANDLER_CPP(shared_static, name = "shared_static");
