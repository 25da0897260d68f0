//! What the types keep safe code from: none of these compiles.

/// A callback's connection does not leave its thread.
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<ws_handler::Current>();
/// ```
struct CurrentIsSent;

/// What belongs to the thread of the event loop stays there.
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<ws_handler::event_loop::Watch>();
/// ```
struct WatchIsSent;

/// A posted task runs, or is dropped, on another thread.
///
/// ```compile_fail,E0277
/// fn post(conn: ws_handler::Conn) -> ws_handler::Result {
///     let here = std::rc::Rc::new(());
///     conn.post(move |_| drop(here))
/// }
/// ```
struct PostIsNotSend;

/// A message is lent until the next one is received.
///
/// ```compile_fail,E0499
/// fn two(conn: &mut ws_handler::Blocking) -> ws_handler::Result {
///     let first = conn.receive()?;
///     let second = conn.receive()?;
///     drop((first, second));
///     Ok(())
/// }
/// ```
struct TwoMessages;

/// A fact is lent until the callback returns.
///
/// ```compile_fail
/// fn keep(conn: &ws_handler::Current) -> Option<ws_handler::Bytes<'static>> {
///     conn.resource()
/// }
/// ```
///
/// ```
/// fn lend<'a>(conn: &'a ws_handler::Current) -> Option<ws_handler::Bytes<'a>> {
///     conn.resource()
/// }
/// ```
struct FactIsKept;

/// A rejection has to be returned.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// use ws_handler::{Handshake, Outcome, Reply};
/// fn forget(handshake: &Handshake) -> Outcome<Reply> {
///     handshake.reject(401)?;
///     Ok(Reply::ACCEPT)
/// }
/// ```
///
/// ```
/// #![deny(unused_must_use)]
/// use ws_handler::{Handshake, Outcome, Reply};
/// fn reject(handshake: &Handshake) -> Outcome<Reply> {
///     Ok(handshake.reject(401)?)
/// }
/// ```
struct RejectionIsForgotten;
