//! Crashes of threads that handlers create, outside of callbacks.

use std::time::Duration;

use crate::client::Raw;
use crate::daemon::{Dir, ECHO, Server, until};
use crate::logged;

/// Each message creates a thread that dies: by a stack overflow, or in code outside of any file.
const THREADS: &str = r#"
    #define _GNU_SOURCE
    #include <pthread.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <ws_handler.h>
    static volatile int zero;
    static int endless(volatile char *above)
    {
        volatile char frame[512];
        frame[0] = (char)(above[0] + 1);
        return zero ? 0 : endless(frame) + frame[0];
    }
    static void *overflow(void *arg)
    {
        volatile char first[1] = {0};
        zero = endless(first);
        return arg;
    }
    static void *made;
    static void *jump(void *arg)
    {
        __asm__ volatile("xor %%esp, %%esp\n jmp *%0" : : "r"(made)); /* no stack tells where it came from */
        return arg;
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        pthread_t thread;
        made = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(made, "\x0f\x0b", 2); /* ud2 */
        pthread_create(&thread, 0, strcmp((const char *)msg->data, "overflow") == 0 ? overflow : jump, 0);
        ws_send_text(conn, "begun");
    }
    WS_HANDLER(.name = "threads", .on_message = on_message);
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn a_crash_of_a_handlers_thread_is_attributed_and_costs_no_connection() {
    for (way, place) in [("overflow", "threads_wsh.so+0x"), ("jump", "0x")] {
        let dir = Dir::new();
        dir.handler("echo", ECHO);
        dir.handler("threads", THREADS);
        let server = Server::start(&dir, &["--workers", "1", "-o", "quarantine_time=30s"]);
        let mut others: Vec<Raw> = (0..20).map(|_| Raw::open(&server.address(), "/echo")).collect();
        others.iter_mut().for_each(|other| assert_eq!(other.ask("before"), "before"));
        for count in 1..=3 {
            // If a young process dies like that, the handler counts as one that prevents the start.
            std::thread::sleep(Duration::from_millis(1100));
            let mut client = Raw::open(&server.address(), "/threads");
            client.text(way);
            let line = format!(" in no callback of threads, {place}");
            until("it has crashed", || logged(&server, &line) == count);
            others.iter_mut().for_each(|other| assert_eq!(other.ask("after"), "after", "{way} {count}"));
        }
        assert_eq!(logged(&server, "threads: 3 workers died in it within 60s: quarantined"), 1);
        assert_eq!(logged(&server, "] died of"), 0, "{}", server.log());
    }
}
