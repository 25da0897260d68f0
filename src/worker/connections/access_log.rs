//! The access log: a line when a connection opens, ends, goes elsewhere or is refused. What it needs to know of a
//! connection beyond the record lies here, and only while there is an access log.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::config::Config;
use crate::ffi::host::Address;
use crate::fleet::routes::Routes;
use crate::log::{self as sink, AccessField, Level, Value};
use crate::proto::http1::head::Head;
use crate::proto::ws::deflate::negotiate::Params;
use crate::time::Instant;
use crate::worker::conn::info;
use crate::worker::conn::record::Record;

/// What the access log knows of the connections.
pub struct AccessLog {
    /// By place in the table; none if there is no access log.
    entries: Option<RefCell<Vec<Tally>>>,
    config: Arc<Config>,
    routes: Arc<Routes>,
}

#[derive(Default)]
struct Tally {
    /// Its id: another one may have had the place before.
    conn: u64,
    /// When it was accepted, opened or came from elsewhere.
    since: Instant,
    stage: EntryStage,
    messages_in: u64,
    bytes_in: u64,
    messages_out: u64,
    bytes_out: u64,
    /// What its request has of the further fields.
    details: Details,
}

/// By further field of the configuration, what the request says; none of a connection that came from another process.
type Details = Option<Rc<[Option<Box<str>>]>>;

/// The longest value of a further field; bytes.
const MAX_DETAIL: usize = 512;

#[derive(Default, PartialEq, Eq)]
enum EntryStage {
    #[default]
    Quiet,
    /// Its request waits for an answer: the resource, and whether it is for a WebSocket.
    Asked(Box<str>, bool),
    /// Its request is not worth a line.
    Unlogged,
    Open,
}

impl AccessLog {
    /// Of connections to these handlers; nothing is written unless the configuration has an access log.
    pub fn new(config: Arc<Config>, routes: Arc<Routes>) -> Self {
        Self { entries: config.log.access.is_some().then(RefCell::default), config, routes }
    }

    #[inline]
    pub fn is_on(&self) -> bool {
        self.entries.is_some()
    }

    /// A connection that is new in this process.
    pub fn begin(&self, id: u64, now: Instant) {
        if let Some(entries) = &self.entries {
            let entries = &mut *entries.borrow_mut();
            let place = id as u32 as usize;
            if entries.len() <= place {
                entries.resize_with(place + 1, Tally::default);
            }
            if let Some(entry) = entries.get_mut(place) {
                *entry = Tally { conn: id, since: now, ..Tally::default() };
            }
        }
    }

    /// A message, or a part of one, has come.
    #[inline]
    pub fn received(&self, id: u64, bytes: usize, last: bool) {
        self.with(id, |entry| {
            entry.messages_in += u64::from(last);
            entry.bytes_in += bytes as u64;
        });
    }

    /// A message, or a part of one, was sent.
    #[inline]
    pub fn sent(&self, id: u64, bytes: usize, last: bool) {
        self.with(id, |entry| {
            entry.messages_out += u64::from(last);
            entry.bytes_out += bytes as u64;
        });
    }

    /// A request has come, for a WebSocket or not.
    pub fn asked(&self, id: u64, resource: &str, is_upgrade: bool, head: &Head) {
        let fields = &self.config.log.fields;
        let of_request = |field: &AccessField| match field.header() {
            Some(name) => head.header(name).map(detail),
            None => (*field == AccessField::Method).then(|| detail(head.method().as_bytes())),
        };
        let details = (!fields.is_empty()).then(|| fields.iter().map(of_request).collect());
        self.with(id, |entry| {
            (entry.stage, entry.details) = (EntryStage::Asked(resource.into(), is_upgrade), details);
        });
    }

    /// Nothing is to be written about the answer to this request.
    pub fn keep_out(&self, id: u64) {
        self.with(id, |entry| entry.stage = EntryStage::Unlogged);
    }

    /// Changes the entry of a connection, if it is still there.
    #[inline]
    fn with<R>(&self, id: u64, f: impl FnOnce(&mut Tally) -> R) -> Option<R> {
        self.entries
            .as_ref()?
            .borrow_mut()
            .get_mut(id as u32 as usize)
            .filter(|entry| entry.conn == id)
            .map(f)
    }
}

type Field<'a> = (&'static str, Value<'a>);

impl AccessLog {
    /// The connection is open here: new, or come from another process.
    pub fn open(&self, id: u64, record: &Record, now: Instant, is_new: bool) {
        let open = |entry: &mut Tally| {
            (entry.stage, entry.since) = (EntryStage::Open, now);
            entry.details.clone()
        };
        if let Some(details) = self.with(id, open) {
            let event = if is_new { "open" } else { "resumed" };
            let status = is_new.then_some(("status", Value::Number(101)));
            self.write_agreed(id, record, event, status.as_slice(), &[], &details);
        }
    }

    /// The connection has ended.
    pub fn close(&self, id: u64, record: &Record, now: Instant, by: u32, code: u32) {
        let by = match by {
            WS_BY_PEER => "peer",
            WS_BY_HANDLER => "handler",
            _ => "server",
        };
        self.end(id, record, now, "close", (code.into(), by));
    }

    /// The connection goes on in another process; a request that is forwarded is answered there.
    pub fn moved(&self, id: u64, record: &Record, now: Instant) {
        self.end(id, record, now, "moved", (0, "move"));
        self.with(id, |entry| entry.stage = EntryStage::Quiet);
    }

    /// A process that crashed has closed the connection; what that process knew of it is lost.
    pub fn cut(&self, id: u64, record: &Record) {
        if self.entries.is_some() {
            let fields = [("code", Value::Absent), ("by", Value::Text("crash"))];
            self.write_agreed(id, record, "close", &[], &fields, &None);
        }
    }

    /// The request was answered with something else than a WebSocket, or (`None`) not at all. `head` is that of the
    /// answer, beside the bytes of its content.
    pub fn answer(&self, id: u64, record: &Record, now: Instant, answer: Option<(&[u8], u64)>) {
        let (head, bytes) = answer.unzip();
        let answered =
            |entry: &mut Tally| (std::mem::take(&mut entry.stage), entry.since, entry.details.take());
        let Some((stage, since, details)) = self.with(id, answered) else { return };
        let (resource, event) = match (&stage, head) {
            (EntryStage::Asked(resource, true), _) => (Some(&**resource), "refused"),
            (EntryStage::Asked(resource, false), _) => (Some(&**resource), "http"),
            // What came was no request.
            (EntryStage::Quiet, Some(_)) => (None, "http"),
            _ => return,
        };
        let status = head.and_then(|head| str::from_utf8(head.get(9..12)?).ok()?.parse().ok());
        let fields = [
            ("status", status.map_or(Value::Absent, Value::Number)),
            ("duration_ms", milliseconds(since, now)),
        ];
        self.write(id, record, event, resource, &fields, (&details, bytes));
    }

    fn end(&self, id: u64, record: &Record, now: Instant, event: &str, (code, by): (u64, &str)) {
        let end = |entry: &mut Tally| (entry.stage == EntryStage::Open).then(|| std::mem::take(entry));
        let Some(entry) = self.with(id, end).flatten() else { return };
        let fields = [
            ("code", Value::Number(code)),
            ("by", Value::Text(by)),
            ("messages_in", Value::Number(entry.messages_in)),
            ("bytes_in", Value::Number(entry.bytes_in)),
            ("messages_out", Value::Number(entry.messages_out)),
            ("bytes_out", Value::Number(entry.bytes_out)),
            ("duration_ms", milliseconds(entry.since, now)),
        ];
        self.write_agreed(id, record, event, &[], &fields, &entry.details);
    }

    /// Writes a line about a connection that is open, with these fields before and behind what was agreed on.
    fn write_agreed(
        &self,
        id: u64,
        record: &Record,
        event: &str,
        before: &[Field],
        behind: &[Field],
        details: &Details,
    ) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let strings = record.strings();
        let (resource, protocol) = (text(strings.resource), strings.protocol.map(text));
        let compression = record.params().map(Params::header_value);
        let agreed =
            [("subprotocol", protocol.as_deref().into()), ("compression", compression.as_deref().into())];
        let resource = Some(&*resource).filter(|resource| !resource.is_empty());
        self.write(id, record, event, resource, &[before, &agreed, behind].concat(), (details, None));
    }

    /// Writes a line about any connection, unless the log level of its handler keeps it out.
    fn write(
        &self,
        id: u64,
        record: &Record,
        event: &str,
        resource: Option<&str>,
        fields: &[Field],
        (details, reply_bytes): (&Details, Option<u64>),
    ) {
        let path = resource.and_then(|resource| resource.split('?').next()).unwrap_or_default();
        let route = self.routes.find(path).and_then(|handler| self.routes.get(handler));
        let level = route.and_then(|route| self.config.handler(&route.resource).log_level);
        if level.is_some_and(|level| level > Level::Info) {
            return;
        }
        let Address { family, port, text } = info::address(record.peer.address());
        let peer = match family {
            WS_IPV4 => format!("{text}:{port}"),
            WS_IPV6 => format!("[{text}]:{port}"),
            _ => "unix".to_owned(),
        };
        let conn = format!("{id:x}");
        let user = record.strings().user.map(String::from_utf8_lossy);
        let first = [
            ("event", Value::Text(event)),
            ("conn", Value::Text(&conn)),
            ("peer", Value::Text(&peer)),
            ("user", user.as_deref().into()),
            ("resource", resource.into()),
        ];
        let origin = record.strings().origin.map(String::from_utf8_lossy);
        let further = self.config.log.fields.iter().enumerate().map(|(index, field)| {
            let asked = details.as_ref().and_then(|details| details.get(index)?.as_deref());
            let value = match field {
                AccessField::Handler => route.map(|route| &*route.name).into(),
                AccessField::ReplyBytes => reply_bytes.map_or(Value::Absent, Value::Number),
                AccessField::Origin => asked.or(origin.as_deref()).into(),
                AccessField::Method | AccessField::Host | AccessField::UserAgent => asked.into(),
            };
            (field.into(), value)
        });
        let further: Vec<Field> = further.collect();
        sink::write_access(&[&first, fields, &further].concat());
    }
}

/// As text, and no longer than that.
fn detail(bytes: &[u8]) -> Box<str> {
    let bytes = bytes.get(..MAX_DETAIL).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).into()
}

fn milliseconds(since: Instant, now: Instant) -> Value<'static> {
    Value::Number(now.since(since).as_millis() as u64)
}
