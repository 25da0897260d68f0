//! Serves one stream: sends its request to a worker, passes the response back, then copies bytes in both directions.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Response};
use tokio::time::timeout;

use super::Connection;
use super::body::{Body, End, Inward};
use super::chunks::Chunks;
use super::request::Request;
use super::response::{self, Answer};
use crate::gateway::socket::Socket;
use crate::http as pages;

/// Time for a worker or a CGI program to respond beyond their own limits.
const TIMEOUT: Duration = Duration::from_secs(5);
const WORKER_EXITED: Failure = Failure::Refused(502, "the worker exited");

/// Why there is no response of a worker.
enum Failure {
    /// Respond with this status and text.
    Refused(u16, &'static str),
    /// The client has reset the stream.
    Reset,
}

/// Serves a stream to its end.
pub async fn serve(
    connection: Arc<Connection>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, receive) = request.into_parts();
    let permit = connection.server.admit_stream();
    let asked = match &permit {
        Ok(_) => ask(&connection, &parts, receive, &mut respond).await,
        Err(error) => Err(unavailable(&connection, error)),
    };
    let (worker, inward, answer, rest) = match asked {
        Ok(asked) => asked,
        Err(Failure::Reset) => return connection.count_reset(),
        Err(Failure::Refused(status, why)) => {
            connection.count_answer();
            return refuse(&connection, &mut respond, status, why, parts.method == Method::HEAD);
        }
    };
    connection.count_answer();
    let Answer { response, is_switching, is_chunked, length, .. } = answer;
    let has_no_body = parts.method == Method::HEAD || matches!(response.status().as_u16(), 204 | 304);
    let left = match (is_switching, has_no_body) {
        (true, _) => None,
        (false, true) => Some(0),
        (false, false) => length,
    };
    let Ok(send) = respond.send_response(response, left == Some(0)) else { return };
    if left == Some(0) {
        return;
    }
    let end = match (is_switching, is_chunked) {
        (true, _) => End::WebSocket,
        (false, true) => End::Chunked(Chunks::START),
        (false, false) => End::Response(left),
    };
    Body::new(worker, inward, send, rest, end).run().await;
}

/// Sends the request to a worker, and waits for the head of the response. Returns it, and the bytes received after it.
async fn ask(
    connection: &Connection,
    parts: &http::request::Parts,
    receive: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<(Socket, Inward, Answer, Vec<u8>), Failure> {
    let refused = |(status, why)| Failure::Refused(status, why);
    let request = Request::new(parts, !receive.is_end_stream()).map_err(refused)?;
    if request.head.len() > connection.server.config.head.bytes.saturating_add(1024) {
        return Err(Failure::Refused(431, "the request head is too long"));
    }
    let server = &connection.server;
    let worker = server.queue.connect(connection.client, connection.facts.borrow()).await;
    let worker = worker.map_err(|error| unavailable(connection, &error))?;
    worker.write_all(&request.head).await.map_err(|_| WORKER_EXITED)?;
    let is_websocket = request.accept.is_some();
    let program = server.config.cgi.as_ref().filter(|_| !is_websocket).map(|cgi| cgi.lifetime);
    let limit = server.config.handshake_timeout.saturating_add(program.unwrap_or_default()) + TIMEOUT;
    let mut inward = Inward::new(receive, is_websocket);
    let answered = timeout(limit, answer(&worker, &mut inward, request.accept, respond)).await;
    let (answer, rest) =
        answered.unwrap_or(Err(Failure::Refused(504, "the worker did not respond in time")))?;
    Ok((worker, inward, answer, rest))
}

/// Waits for the head of the response. A CGI program may read the whole body of the request before; a WebSocket begins
/// only after it.
async fn answer(
    worker: &Socket,
    inward: &mut Inward,
    accept: Option<[u8; 28]>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(Answer, Vec<u8>), Failure> {
    let accept = accept.as_ref().map(<[u8; 28]>::as_slice);
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let bad = |_| Failure::Refused(502, "malformed response of the worker");
        if let Some(answer) = response::parse(&head, accept).map_err(bad)? {
            let rest = head.split_off(answer.consumed);
            if !answer.is_interim {
                return Ok((answer, rest));
            }
            respond.send_informational(answer.response).map_err(|_| Failure::Reset)?;
            head = rest;
            continue;
        }
        let read = poll_fn(|cx| {
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Failure::Reset));
            }
            while accept.is_none()
                && let Poll::Ready(result) = inward.poll(worker, cx)
            {
                result.map_err(|_| Failure::Reset)?;
            }
            worker.poll_read(cx, &mut buffer).map_err(|_| WORKER_EXITED)
        });
        let count = read.await?;
        if count == 0 {
            return Err(WORKER_EXITED);
        }
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

fn unavailable(connection: &Connection, error: &io::Error) -> Failure {
    connection.server.unavailable(error);
    Failure::Refused(503, "no worker is available")
}

fn refuse(
    connection: &Connection,
    respond: &mut SendResponse<Bytes>,
    status: u16,
    why: &'static str,
    is_head: bool,
) {
    let page = pages::error(status, why, &[]).into_bytes();
    let Ok(Some(Answer { response, consumed, .. })) = response::parse(&page, None) else {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    let (mut parts, ()) = response.into_parts();
    if let Some(hsts) = connection.facts.hsts() {
        parts.headers.extend([(http::header::STRICT_TRANSPORT_SECURITY, hsts)]);
    }
    if let Ok(mut send) = respond.send_response(Response::from_parts(parts, ()), is_head)
        && !is_head
    {
        let body = Bytes::copy_from_slice(page.get(consumed..).unwrap_or_default());
        let _ = send.send_data(body, true); // fails if the stream was reset
    }
}
