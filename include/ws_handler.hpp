// ws_handler.hpp - ws_handler.h for C++11 and later, in this file alone.
//
//     #include <ws_handler.hpp>
//
//     namespace {
//     struct echo {
//         void on_message(ws::conn conn, const ws::message &msg) { conn.send(msg); }
//     };
//     }
//
//     WS_HANDLER_CPP(echo, name = "echo");
//
//     c++ -shared -fPIC -fvisibility=hidden -fno-gnu-unique echo_wsh.cc -o echo_wsh.so
//
// Without the last two options handlers of one worker share inline static
// variables of the same name (clang has no need of the last one, and no such
// option).
//
// A handler is a class with the callbacks that it wants, under the names and with
// the meaning that ws_handler.h gives them; no base class, nothing virtual. Each
// connection has an object of the class: made just before on_open, from ws::conn
// if there is such a constructor and else by default, and destroyed after
// on_close. The callbacks:
//
//     static R    on_worker_start();
//     static void on_worker_stop();
//     static int32_t do_extra_handshake(ws::conn, ws::handshake);
//     R           on_open(ws::conn);
//     R           transfer_data(ws::conn);                         blocking style
//     void        on_message(ws::conn, const ws::message &);       event style
//     R           passive_closing_handshake(ws::conn);
//     void        on_close(ws::conn, uint32_t by, uint32_t code);
//     void        on_pong(ws::conn, ws::bytes data, uint64_t rtt);
//     void        on_writable(ws::conn);
//     void        on_drain(ws::conn);
//
// R is int32_t or void, which means WS_OK. One with the right name and the wrong
// arguments does not compile. The class must not be final.
//
// Exceptions never leave the handler. They are logged with what(), and the
// callback returns WS_E_FAILED, or where it has no result closes with 1011.
//
// Of the C functions only ws_set_user(), ws_user() and ws_attach_user() are taken:
// they keep the object; see ws::conn::object() and ws::handshake::attach(). The
// others can be used beside this file.
#ifndef WS_HANDLER_HPP
#define WS_HANDLER_HPP

#include "ws_handler.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#if __cplusplus >= 201703L
#include <string_view>
#endif

namespace ws {

// Bytes that are not owned: a view. Absent bytes are false, and equal to nothing
// but absent bytes. How long they live, ws_handler.h says where they come from.
class bytes {
public:
    bytes() : data_(nullptr), size_(0) {}
    bytes(const void *data, std::size_t size) : data_(static_cast<const char *>(data)), size_(size) {}
    bytes(ws_bytes raw) : data_(raw.data), size_(raw.size) {}
    bytes(const char *text) : data_(text), size_(text != nullptr ? std::strlen(text) : 0) {}
    bytes(const std::string &text) : data_(text.data()), size_(text.size()) {}

    const char *data() const { return data_; }
    std::size_t size() const { return size_; }
    bool        empty() const { return size_ == 0; }
    const char *begin() const { return data_; }
    const char *end() const { return data_ + size_; }
    char        operator[](std::size_t index) const { return data_[index]; }
    explicit    operator bool() const { return data_ != nullptr; }

    std::string str() const { return data_ != nullptr ? std::string(data_, size_) : std::string(); }
    operator std::string() const { return str(); }
#if __cplusplus >= 201703L
    bytes(std::string_view text) : data_(text.data()), size_(text.size()) {}
    operator std::string_view() const { return std::string_view(data_, size_); }
#endif

    friend bool operator==(const bytes &a, const bytes &b)
    {
        return (a.data_ == nullptr) == (b.data_ == nullptr) && a.size_ == b.size_ &&
               (a.size_ == 0 || std::memcmp(a.data_, b.data_, a.size_) == 0);
    }
    friend bool operator!=(const bytes &a, const bytes &b) { return !(a == b); }

private:
    const char *data_;
    std::size_t size_;
};

// A message, or with WS_STREAM a fragment of one.
struct message : bytes {
    uint32_t type;  // WS_TEXT or WS_BINARY
    uint32_t flags; // WS_FIRST, WS_LAST

    message() : type(0), flags(0) {}
    message(const ws_message &raw) : bytes(raw.data, raw.size), type(raw.type), flags(raw.flags) {}

    bool is_text() const { return type == WS_TEXT; }
    bool is_binary() const { return type == WS_BINARY; }
    bool is_first() const { return (flags & WS_FIRST) != 0; }
    bool is_last() const { return (flags & WS_LAST) != 0; }
};

// --------------------------------------------------- log, time, configuration

inline uint32_t worker() { return ws_worker(); }
inline uint32_t workers() { return ws_workers(); }
inline uint64_t now() { return ws_now(); }
inline void     log(uint32_t level, bytes text) { ws_host_->log(ws_host_, 0, level, text.data(), text.size()); }
inline bytes    config(bytes key) { return ws_host_->config(ws_host_, key.data(), key.size()); }

inline bool config_at(std::size_t index, bytes &key, bytes &value)
{
    ws_bytes raw_key, raw_value;
    if (ws_config_at(index, &raw_key, &raw_value) != 1)
        return false;
    key = raw_key, value = raw_value;
    return true;
}

// The items of "a, b"; see ws_list_next().
inline std::vector<bytes> list(bytes text)
{
    std::vector<bytes> items;
    ws_bytes           rest = {text.data(), text.size()}, item;
    while (ws_list_next(&rest, &item))
        items.push_back(item);
    return items;
}

namespace detail {

// What a handshake attaches for on_open, perhaps from another thread.
class attachment {
public:
    template <class T> void set(T value)
    {
        std::shared_ptr<void> made = std::make_shared<T>(std::move(value));
        std::lock_guard<std::mutex> lock(mutex_);
        value_.swap(made); // the one before is destroyed after the lock
        type_ = type_of<T>();
    }
    template <class T> std::shared_ptr<T> get()
    {
        std::lock_guard<std::mutex> lock(mutex_);
        return type_ == type_of<T>() ? std::static_pointer_cast<T>(value_) : std::shared_ptr<T>();
    }

private:
    template <class T> static const void *type_of()
    {
        static const char here = 0;
        return &here;
    }

    std::mutex            mutex_;
    std::shared_ptr<void> value_;
    const void           *type_ = nullptr;
};

} // namespace detail

// A handshake in progress; a value that can be kept and used from any thread after
// WS_LATER.
class handshake {
public:
    handshake(ws_handshake *raw, std::shared_ptr<detail::attachment> attached)
        : raw_(raw), attached_(std::move(attached))
    {
    }
    ws_handshake *raw() const { return raw_; }

    // Attaches a value for on_open, where ws::conn::attached() has it: who the peer
    // is. It replaces one of before, and is destroyed with the connection, or if
    // that never opens.
    template <class T> void attach(T value) const { attached_->set(std::move(value)); }
    int32_t                 set_state(bytes data) const
    {
        return ws_attach_state(raw_, data.data(), data.size());
    }

    // Absent bytes: none.
    int32_t set_protocol(bytes protocol) const
    {
        return ws_host_->set_protocol(raw_, protocol.data(), protocol.size());
    }
    int32_t add_header(bytes name, bytes value) const
    {
        return ws_host_->add_header(raw_, name.data(), name.size(), value.data(), value.size());
    }
    int32_t configure_deflate(const ws_deflate_options &options) const
    {
        return ws_configure_deflate(raw_, &options);
    }
    int32_t refuse_extensions() const { return ws_refuse_extensions(raw_); }
    int32_t accept() const { return ws_accept(raw_); }
    int32_t accept_and_close(uint32_t code, bytes reason = bytes()) const
    {
        return ws_host_->accept_and_close(raw_, code, reason.data(), reason.size());
    }
    WS_MUST_USE_ int32_t reject(uint32_t status) const { return ws_reject(raw_, status); }
    WS_MUST_USE_ int32_t reject(uint32_t status, bytes type, bytes body) const
    {
        return ws_host_->reject(raw_, status, type.data(), type.size(), body.data(), body.size());
    }
    WS_MUST_USE_ int32_t abort() const { return ws_abort_handshake(raw_); }

private:
    ws_handshake                       *raw_;
    std::shared_ptr<detail::attachment> attached_;
};

class conn;
typedef std::function<void(conn)> task;

// A connection: an id. Copied, kept and compared freely; used too late, its
// functions return WS_E_GONE. Where each may be called, ws_handler.h says.
class conn {
public:
    conn() : id_(0) {}
    conn(ws_conn id) : id_(id) {}
    ws_conn     id() const { return id_; }
    friend bool operator==(conn a, conn b) { return a.id_ == b.id_; }
    friend bool operator!=(conn a, conn b) { return a.id_ != b.id_; }
    friend bool operator<(conn a, conn b) { return a.id_ < b.id_; }

    void log(uint32_t level, bytes text) const
    {
        ws_host_->log(ws_host_, id_, level, text.data(), text.size());
    }

    // The request.
    bytes resource() const { return ws_resource(id_); }
    bytes path() const { return ws_path(id_); }
    bytes query() const { return ws_query(id_); }
    bytes authority() const { return ws_authority(id_); }
    bytes origin() const { return ws_origin(id_); }
    bytes remote_user() const { return ws_remote_user(id_); }
    bytes method() const { return ws_method(id_); }
    bytes header(bytes name) const { return ws_host_->header(id_, name.data(), name.size()); }
    bool  header_at(std::size_t index, bytes &name, bytes &value) const
    {
        ws_bytes raw_name, raw_value;
        if (ws_header_at(id_, index, &raw_name, &raw_value) != 1)
            return false;
        name = raw_name, value = raw_value;
        return true;
    }
    // Decoded; false if there is none, or it has a NUL or more than 4,095 bytes.
    bool query_param(const char *name, std::string &value) const
    {
        return decoded(ws_query_param, name, value);
    }
    bool     cookie(const char *name, std::string &value) const { return decoded(ws_cookie, name, value); }
    bytes    requested_protocols() const { return ws_requested_protocols(id_); }
    bytes    requested_extensions() const { return ws_requested_extensions(id_); }
    uint32_t version() const { return ws_version(id_); }
    int32_t  remote_address(ws_address &address) const { return ws_remote_address(id_, &address); }
    int32_t  local_address(ws_address &address) const { return ws_local_address(id_, &address); }
    bytes    tls_fact(uint32_t which) const { return ws_tls_fact(id_, which); }

    // What was agreed.
    bytes protocol() const { return ws_protocol(id_); }
    bytes extensions() const { return ws_extensions(id_); }
    bool  deflate() const { return ws_deflate(id_) == 1; }

    // Data.
    int32_t receive(message &msg, int64_t timeout_ms = WS_FOREVER) const
    {
        ws_message raw;
        int32_t    result = ws_receive(id_, &raw, timeout_ms);
        if (result == WS_MESSAGE)
            msg = raw;
        return result;
    }
    int32_t send(uint32_t type, bytes data, uint32_t flags = 0) const
    {
        return ws_send_flags(id_, type, data.data(), data.size(), flags);
    }
    int32_t send(const message &msg) const
    {
        return send(msg.type, msg, msg.is_last() || msg.flags == 0 ? 0 : WS_MORE);
    }
    int32_t subscribe(const std::string &topic, uint32_t flags = 0) const
    {
        return WS_HOST_HAS(subscribe) ? ws_host_->subscribe(id_, topic.data(), topic.size(), flags)
                                      : WS_E_UNSUPPORTED;
    }
    int32_t unsubscribe(const std::string &topic) const
    {
        return WS_HOST_HAS(unsubscribe) ? ws_host_->unsubscribe(id_, topic.data(), topic.size())
                                        : WS_E_UNSUPPORTED;
    }
    uint64_t missed() const { return ws_missed(id_); }
    int32_t send_text(bytes text) const { return send(WS_TEXT, text); }
    int32_t send_binary(bytes data) const { return send(WS_BINARY, data); }
    // Sends the string without copying its bytes once more.
    int32_t send_owned(uint32_t type, std::string data, uint32_t flags = 0) const
    {
        std::string *owned = new std::string(std::move(data));
        return ws_send_owned(id_, type, owned->data(), owned->size(), flags, release, owned);
    }
    int32_t     send_raw(bytes octets) const { return ws_send_raw(id_, octets.data(), octets.size()); }
    int32_t     ping(bytes data = bytes("")) const { return ws_ping(id_, data.data(), data.size()); }
    std::size_t buffered() const { return ws_buffered(id_); }
    int32_t     pause() const { return ws_pause(id_); }
    int32_t     resume() const { return ws_resume(id_); }
    uint32_t    last_opcode() const { return ws_last_opcode(id_); }

    // Time and threads; for those of the worker see ws::post() and ws::interval. What
    // the task holds is destroyed after it has run, or when the connection ends
    // before; then it does not run.
    inline int64_t set_timer(uint64_t delay_ms, task run) const;
    inline int64_t set_interval(uint64_t period_ms, task run) const;
    inline int32_t clear_timer(int64_t timer) const;
    inline int32_t post(task run) const;

    // Closing.
    int32_t close(uint32_t code = WS_CLOSE_NORMAL, bytes reason = bytes()) const
    {
        return ws_host_->close(id_, code, reason.data(), reason.size());
    }
    int32_t  abort() const { return ws_abort(id_); }
    uint32_t close_code() const { return ws_close_code(id_); }
    bytes    close_reason() const { return ws_close_reason(id_); }

    // What a connection carries. object() is null before on_open and after
    // on_close; Class is the one that was given to WS_HANDLER_CPP.
    // [in a callback of this connection]
    template <class Class> Class *object() const;
    // What ws::handshake::attach() has attached, if it is a T, else null.
    template <class T> std::shared_ptr<T> attached() const;
    int32_t set_state(bytes data) const { return ws_set_state(id_, data.data(), data.size()); }
    bytes   state() const { return ws_state(id_); }
    bool    is_resumed() const { return ws_is_resumed(id_) == 1; }

private:
    static void release(void *arg) { delete static_cast<std::string *>(arg); }

    template <class Ask> bool decoded(Ask ask, const char *name, std::string &value) const
    {
        char    text[4096];
        int32_t size = ask(id_, name, text, sizeof text);
        if (size >= 0)
            value.assign(text, static_cast<std::size_t>(size));
        return size >= 0;
    }
    inline int64_t add_timer(uint64_t delay_ms, bool again, task run) const;

    ws_conn id_;
};

// -------------------------------------------------------------------- topics

// Sends a message to all subscribers of a topic; flags: WS_NOT_SELF,
// WS_UNCOMPRESSED.
inline int32_t publish(const std::string &topic, uint32_t type, bytes data, uint32_t flags = 0)
{
    return WS_HOST_HAS(publish)
               ? ws_host_->publish(ws_host_, topic.data(), topic.size(), type, data.data(), data.size(), flags)
               : WS_E_UNSUPPORTED;
}
inline int32_t publish(const std::string &topic, const message &msg, uint32_t flags = 0)
{
    return publish(topic, msg.type, msg, flags);
}
inline uint64_t subscribers(const std::string &topic)
{
    return WS_HOST_HAS(subscribers) ? ws_host_->subscribers(ws_host_, topic.data(), topic.size()) : 0;
}

// ---------------------------------------------------------- the worker's event loop
//
// What a handler has in a worker without a connection. All of it runs on the event
// loop and must not wait.

// Runs it soon, before on_worker_stop at the latest. WS_OK, or WS_E_LIMIT (1,024 are
// waiting), WS_E_INVALID (no function). [any thread]
inline int32_t post(std::function<void()> run);

// A timer that runs again and again until it is stopped or destroyed.
// [on the thread of the worker's event loop, on_worker_start included]
class interval {
public:
    interval() {}
    ~interval() { stop(); }
    interval(const interval &) = delete;
    interval &operator=(const interval &) = delete;

    // Runs this every period_ms milliseconds (at least 1), and no more what it ran
    // before. WS_OK, or WS_E_LIMIT, WS_E_INVALID (no function), WS_E_PLACE.
    inline int32_t start(uint64_t period_ms, std::function<void()> run);
    inline void    stop();

private:
    static inline void call(ws_conn, void *arg);

    int64_t                                id_ = 0;
    std::shared_ptr<std::function<void()>> run_;
};

// A descriptor that is watched until this is stopped or destroyed, which comes before
// the descriptor is closed. One for each descriptor. See ws_watch_fd().
// [on the thread of the worker's event loop, on_worker_start included]
class watch {
public:
    typedef std::function<void(uint32_t events)> ready;

    watch() {}
    ~watch() { stop(); }
    watch(const watch &) = delete;
    watch &operator=(const watch &) = delete;

    // Watches this descriptor, and no more the one before. Results of ws_watch_fd().
    inline int32_t start(int32_t fd, uint32_t events, ready run);
    // Changes what it is watched for. WS_E_INVALID also where none is watched.
    inline int32_t set_events(uint32_t events);
    inline void    stop();

private:
    static inline void call(int32_t, uint32_t events, void *arg);

    int32_t                fd_ = -1;
    std::shared_ptr<ready> run_;
};

// ------------------------------------------------------- from here on: helpers

namespace detail {

// Runs `body` and lets nothing out: `failed` is the result after an exception.
template <class Body> auto contain(ws_conn conn, const char *where, Body body) -> int32_t
{
    try {
        return body();
    } catch (const std::exception &error) {
        ws_log_conn(conn, WS_LOG_ERROR, "exception in %s: %s", where, error.what());
    } catch (...) {
        ws_log_conn(conn, WS_LOG_ERROR, "exception in %s that is not a std::exception", where);
    }
    return WS_E_FAILED;
}

// The same for a callback without a result.
template <class Body> void contain_and_close(ws_conn conn, const char *where, Body body)
{
    if (contain(conn, where, body) == WS_E_FAILED)
        ws_close(conn, WS_CLOSE_INTERNAL_ERROR, NULL);
}

// Calls a callback whose result may be left out.
template <class Call>
typename std::enable_if<std::is_void<decltype(std::declval<Call>()())>::value, int32_t>::type
result_of(Call call)
{
    call();
    return WS_OK;
}
template <class Call>
typename std::enable_if<!std::is_void<decltype(std::declval<Call>()())>::value, int32_t>::type
result_of(Call call)
{
    return call();
}

// Holds the object of a connection, whatever its class.
struct holder {
    virtual ~holder() {}
};
template <class Class> struct holder_of : holder {
    Class object;

    template <class From = Class>
    explicit holder_of(conn c, typename std::enable_if<std::is_constructible<From, conn>::value>::type * = 0)
        : object(c)
    {
    }
    template <class From = Class>
    explicit holder_of(conn, typename std::enable_if<!std::is_constructible<From, conn>::value>::type * = 0)
        : object()
    {
    }
};

// What ws_user() points to: the timers that have not run, what was attached, and
// from on_open to on_close the object. The host owns it: it is made when the first
// of these is needed, and released on the connection's thread.
struct session {
    struct timer {
        session              *owner;
        int64_t               id;
        bool                  again;
        std::shared_ptr<task> run;
    };
    std::vector<std::unique_ptr<timer>> timers;
    std::shared_ptr<attachment>         attached = std::make_shared<attachment>();
    std::unique_ptr<holder>             object;

    // Taken out first and destroyed by the caller: that runs code of the handler.
    template <class Wanted> std::unique_ptr<timer> take(Wanted wanted)
    {
        for (std::size_t i = 0; i < timers.size(); i++) {
            if (wanted(*timers[i])) {
                std::unique_ptr<timer> taken(std::move(timers[i]));
                timers.erase(timers.begin() + static_cast<std::ptrdiff_t>(i));
                return taken;
            }
        }
        return nullptr;
    }
};

inline session *session_of(ws_conn conn) { return static_cast<session *>(ws_user(conn)); }

inline void release_session(void *arg)
{
    contain(0, "the destructor", [&]() { return delete static_cast<session *>(arg), WS_OK; });
}

// The session of a connection, made if there is none; null, and why, where that cannot be.
inline session *session_for(ws_conn conn, int32_t &result)
{
    session *known = session_of(conn);
    if (known != nullptr)
        return known;
    result = ws_set_user_owned(conn, new session(), release_session);
    return result == WS_OK ? session_of(conn) : nullptr;
}

inline void run_timer(ws_conn conn, void *arg)
{
    session::timer                 *due = static_cast<session::timer *>(arg);
    std::shared_ptr<task>           run = due->run; // it may clear itself
    std::unique_ptr<session::timer> over;
    if (!due->again)
        over = due->owner->take([&](const session::timer &one) { return &one == due; });
    contain_and_close(conn, "a timer", [&]() { return (*run)(conn), WS_OK; });
}

inline void run_posted(ws_conn conn, void *arg)
{
    std::unique_ptr<task> run(static_cast<task *>(arg));
    if (ws_version(conn) != 0) // 0: the connection is gone
        contain_and_close(conn, "a posted task", [&]() { return (*run)(conn), WS_OK; });
}

inline void run_posted_to_worker(ws_conn, void *arg)
{
    std::unique_ptr<std::function<void()>> run(static_cast<std::function<void()> *>(arg));
    contain(0, "a posted task", [&]() { return (*run)(), WS_OK; });
}

// has_NAME<Class>: does Class have a member of this name, whatever it is? If so,
// the name is ambiguous in a class that inherits it from two sides.
#define WS_DETECT_(NAME)                                                                  \
    template <class Class> struct has_##NAME {                                            \
        struct other {                                                                    \
            int NAME;                                                                     \
        };                                                                                \
        struct both : Class, other {};                                                    \
        template <class Both> static char test(decltype(&Both::NAME) *);                  \
        template <class Both> static long test(...);                                      \
        static const bool value = sizeof(test<both>(nullptr)) != sizeof(char);            \
    };
WS_DETECT_(on_worker_start)
WS_DETECT_(on_worker_stop)
WS_DETECT_(do_extra_handshake)
WS_DETECT_(on_open)
WS_DETECT_(transfer_data)
WS_DETECT_(on_message)
WS_DETECT_(passive_closing_handshake)
WS_DETECT_(on_close)
WS_DETECT_(on_pong)
WS_DETECT_(on_writable)
WS_DETECT_(on_drain)
#undef WS_DETECT_

// The functions that the table points to, and the object they are for.
template <class Class> struct calls {
    static Class &object(ws_conn conn)
    {
        session *found = session_of(conn);
        if (found == nullptr || !found->object)
            throw std::logic_error("the connection has no object");
        return static_cast<holder_of<Class> *>(found->object.get())->object;
    }

    template <class Then> static int32_t open(ws_conn conn, Then then)
    {
        return contain(conn, "on_open", [&]() -> int32_t {
            int32_t  result = WS_E_GONE;
            session *own = session_for(conn, result);
            if (own == nullptr)
                return result;
            own->object.reset(new holder_of<Class>(ws::conn(conn)));
            return then(object(conn));
        });
    }

    template <class Then> static void closed(ws_conn conn, Then then)
    {
        session *ended = session_of(conn);
        if (ended == nullptr || !ended->object) // its constructor has failed
            return;
        contain(conn, "on_close", [&]() { return then(), WS_OK; });
        contain(conn, "the destructor", [&]() { return ended->object.reset(), WS_OK; });
    }
};

// Each add_NAME(table, yes) sets one member of the table; with `no` the class
// does not define it.
typedef std::true_type  yes;
typedef std::false_type no;

template <class C> void add_on_worker_start(ws_handler &, no) {}
template <class C> void add_on_worker_start(ws_handler &table, yes)
{
    table.on_worker_start = []() -> int32_t {
        return contain(0, "on_worker_start",
                       []() { return result_of([]() { return C::on_worker_start(); }); });
    };
}

template <class C> void add_on_worker_stop(ws_handler &, no) {}
template <class C> void add_on_worker_stop(ws_handler &table, yes)
{
    table.on_worker_stop = []() {
        contain(0, "on_worker_stop", []() { return C::on_worker_stop(), WS_OK; });
    };
}

template <class C> void add_do_extra_handshake(ws_handler &, no) {}
template <class C> void add_do_extra_handshake(ws_handler &table, yes)
{
    static_assert(
        std::is_same<decltype(C::do_extra_handshake(ws::conn(), std::declval<handshake>())), int32_t>::value,
        "do_extra_handshake returns int32_t: WS_OK accepts, else what reject() or abort() returned");
    table.do_extra_handshake = [](ws_conn conn, ws_handshake *hs) -> int32_t {
        return contain(conn, "do_extra_handshake", [&]() -> int32_t {
            int32_t  result = WS_E_GONE;
            session *own = session_for(conn, result);
            if (own == nullptr)
                return result;
            return C::do_extra_handshake(ws::conn(conn), handshake(hs, own->attached));
        });
    };
}

template <class C> void add_on_open(ws_handler &table, no)
{
    table.on_open = [](ws_conn conn) -> int32_t {
        return calls<C>::open(conn, [](C &) { return WS_OK; });
    };
}
template <class C> void add_on_open(ws_handler &table, yes)
{
    table.on_open = [](ws_conn conn) -> int32_t {
        return calls<C>::open(conn, [&](C &object) {
            return result_of([&]() { return object.on_open(ws::conn(conn)); });
        });
    };
}

template <class C> void add_transfer_data(ws_handler &, no) {}
template <class C> void add_transfer_data(ws_handler &table, yes)
{
    table.transfer_data = [](ws_conn conn) -> int32_t {
        return contain(conn, "transfer_data", [&]() {
            return result_of([&]() { return calls<C>::object(conn).transfer_data(ws::conn(conn)); });
        });
    };
}

template <class C> void add_on_message(ws_handler &, no) {}
template <class C> void add_on_message(ws_handler &table, yes)
{
    table.on_message = [](ws_conn conn, const ws_message *msg) {
        contain_and_close(conn, "on_message", [&]() {
            return calls<C>::object(conn).on_message(ws::conn(conn), message(*msg)), WS_OK;
        });
    };
}

template <class C> void add_passive_closing_handshake(ws_handler &, no) {}
template <class C> void add_passive_closing_handshake(ws_handler &table, yes)
{
    table.passive_closing_handshake = [](ws_conn conn) -> int32_t {
        return contain(conn, "passive_closing_handshake", [&]() {
            return result_of(
                [&]() { return calls<C>::object(conn).passive_closing_handshake(ws::conn(conn)); });
        });
    };
}

template <class C> void add_on_close(ws_handler &table, no)
{
    table.on_close = [](ws_conn conn, uint32_t, uint32_t) { calls<C>::closed(conn, []() {}); };
}
template <class C> void add_on_close(ws_handler &table, yes)
{
    table.on_close = [](ws_conn conn, uint32_t by, uint32_t code) {
        calls<C>::closed(conn, [&]() { calls<C>::object(conn).on_close(ws::conn(conn), by, code); });
    };
}

template <class C> void add_on_pong(ws_handler &, no) {}
template <class C> void add_on_pong(ws_handler &table, yes)
{
    table.on_pong = [](ws_conn conn, const char *data, size_t size, uint64_t rtt) {
        contain_and_close(conn, "on_pong", [&]() {
            return calls<C>::object(conn).on_pong(ws::conn(conn), bytes(data, size), rtt), WS_OK;
        });
    };
}

template <class C> void add_on_writable(ws_handler &, no) {}
template <class C> void add_on_writable(ws_handler &table, yes)
{
    table.on_writable = [](ws_conn conn) {
        contain_and_close(conn, "on_writable",
                          [&]() { return calls<C>::object(conn).on_writable(ws::conn(conn)), WS_OK; });
    };
}

template <class C> void add_on_drain(ws_handler &, no) {}
template <class C> void add_on_drain(ws_handler &table, yes)
{
    table.on_drain = [](ws_conn conn) {
        contain_and_close(conn, "on_drain",
                          [&]() { return calls<C>::object(conn).on_drain(ws::conn(conn)), WS_OK; });
    };
}

template <class C> void fill(ws_handler &table)
{
    static_assert(has_transfer_data<C>::value != has_on_message<C>::value,
                  "a handler has transfer_data (blocking style) or on_message (event style), one of them");
    table.size = sizeof(ws_handler);
    table.abi = WS_ABI;
#define WS_ADD_(NAME) add_##NAME<C>(table, std::integral_constant<bool, has_##NAME<C>::value>())
    WS_ADD_(on_worker_start);
    WS_ADD_(on_worker_stop);
    WS_ADD_(do_extra_handshake);
    WS_ADD_(on_open);
    WS_ADD_(transfer_data);
    WS_ADD_(on_message);
    WS_ADD_(passive_closing_handshake);
    WS_ADD_(on_close);
    WS_ADD_(on_pong);
    WS_ADD_(on_writable);
    WS_ADD_(on_drain);
#undef WS_ADD_
}

} // namespace detail

inline int64_t conn::set_timer(uint64_t delay_ms, task run) const
{
    return add_timer(delay_ms, false, std::move(run));
}

// Again and again, until it is cleared.
inline int64_t conn::set_interval(uint64_t period_ms, task run) const
{
    return add_timer(period_ms, true, std::move(run));
}

inline int64_t conn::add_timer(uint64_t delay_ms, bool again, task run) const
{
    int32_t          result = WS_E_GONE;
    detail::session *session = detail::session_for(id_, result);
    if (session == nullptr)
        return result;
    std::unique_ptr<detail::session::timer> timer(
        new detail::session::timer{session, 0, again, std::make_shared<task>(std::move(run))});
    timer->id = again ? ws_set_interval(id_, delay_ms, detail::run_timer, timer.get())
                      : ws_set_timer(id_, delay_ms, detail::run_timer, timer.get());
    int64_t id = timer->id;
    if (id > 0)
        session->timers.push_back(std::move(timer));
    return id;
}

inline int32_t conn::clear_timer(int64_t timer) const
{
    int32_t          result = ws_clear_timer(id_, timer);
    detail::session *session = detail::session_of(id_);
    if (result == WS_OK && session != nullptr)
        session->take([&](const detail::session::timer &one) { return one.id == timer; });
    return result;
}

inline int32_t conn::post(task run) const
{
    std::unique_ptr<task> posted(new task(std::move(run)));
    int32_t               result = ws_post(id_, detail::run_posted, posted.get());
    if (result == WS_OK)
        posted.release();
    return result;
}

inline int32_t post(std::function<void()> run)
{
    if (!run)
        return WS_E_INVALID;
    std::unique_ptr<std::function<void()>> posted(new std::function<void()>(std::move(run)));
    int32_t                                result = ws_post(0, detail::run_posted_to_worker, posted.get());
    if (result == WS_OK)
        posted.release();
    return result;
}

inline int32_t interval::start(uint64_t period_ms, std::function<void()> run)
{
    stop();
    if (!run)
        return WS_E_INVALID;
    run_ = std::make_shared<std::function<void()>>(std::move(run));
    id_ = ws_set_interval(0, period_ms, call, this);
    if (id_ > 0)
        return WS_OK;
    run_.reset();
    return static_cast<int32_t>(id_);
}

inline void interval::stop()
{
    if (id_ > 0)
        ws_clear_timer(0, id_);
    id_ = 0;
    run_.reset();
}

inline void interval::call(ws_conn, void *arg)
{
    std::shared_ptr<std::function<void()>> run = static_cast<interval *>(arg)->run_; // it may stop itself
    detail::contain(0, "an interval of the worker", [&]() { return (*run)(), WS_OK; });
}

inline int32_t watch::start(int32_t fd, uint32_t events, ready run)
{
    stop();
    if (!run)
        return WS_E_INVALID;
    int32_t result = ws_watch_fd(fd, events, call, this);
    if (result != WS_OK)
        return result;
    fd_ = fd;
    run_ = std::make_shared<ready>(std::move(run));
    return WS_OK;
}

inline int32_t watch::set_events(uint32_t events)
{
    return fd_ >= 0 ? ws_watch_fd(fd_, events, call, this) : WS_E_INVALID;
}

inline void watch::stop()
{
    if (fd_ >= 0)
        ws_unwatch_fd(fd_);
    fd_ = -1;
    run_.reset();
}

inline void watch::call(int32_t, uint32_t events, void *arg)
{
    std::shared_ptr<ready> run = static_cast<watch *>(arg)->run_; // it may stop itself
    detail::contain(0, "the function of a descriptor", [&]() { return (*run)(events), WS_OK; });
}

template <class Class> Class *conn::object() const
{
    detail::session *session = detail::session_of(id_);
    if (session == nullptr || !session->object)
        return nullptr;
    return &static_cast<detail::holder_of<Class> *>(session->object.get())->object;
}

template <class T> std::shared_ptr<T> conn::attached() const
{
    detail::session *session = detail::session_of(id_);
    return session != nullptr ? session->attached->get<T>() : std::shared_ptr<T>();
}

} // namespace ws

// Defines the handler, once in each shared object. What follows the class sets
// members of struct ws_handler:
//     WS_HANDLER_CPP(chat, name = "chat", version = "1.0", flags = WS_KEEP_REQUEST);
#define WS_HANDLER_CPP(Class, ...)                                              \
    const ws_host *ws_host_;                                                    \
    const ws_handler *ws_handler_entry_v1(const ws_host *host)                  \
    {                                                                           \
        struct described : ws_handler {                                         \
            described() : ws_handler()                                          \
            {                                                                   \
                ::ws::detail::fill<Class>(*this);                               \
                __VA_ARGS__;                                                    \
            }                                                                   \
        };                                                                      \
        static const described handler;                                         \
        ws_host_ = host;                                                        \
        return host->size >= WS_HOST_LEAST_ ? &handler : nullptr;                \
    }                                                                           \
    static_assert(true, "")

#endif // WS_HANDLER_HPP
