//! Parses names and declarations of ws_handler.h.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::fixtures::root;

/// A member of a struct, and how it is declared in C.
pub struct Member {
    pub name: String,
    pub declaration: String,
}

/// The names in the header's text.
pub struct Header {
    pub structs: BTreeMap<String, Vec<Member>>,
    pub constants: BTreeSet<String>,
    pub functions: BTreeSet<String>,
}

impl Header {
    pub fn read() -> Header {
        let text = without_comments(&fs::read_to_string(root().join("include/ws_handler.h")).unwrap());
        let mut structs = BTreeMap::new();
        for part in text.split("typedef struct ").skip(1) {
            let Some((name, rest)) = part.split_once(" {") else { continue };
            let Some((body, _)) = rest.split_once(&format!("}} {name};")) else { continue };
            let members = body.split(';').map(normal).filter(|member| !member.is_empty());
            structs.insert(name.to_owned(), members.map(Member::of).collect());
        }
        let defines = text.lines().filter_map(|line| line.strip_prefix("#define "));
        let constants = defines
            .filter_map(|define| define.split_once(' '))
            .filter(|(name, value)| {
                !name.contains('(')
                    && !name.ends_with('_')
                    && !value.trim_start().starts_with(['{', '_'])
                    && !value.trim().is_empty()
            })
            .map(|(name, _)| name.to_owned())
            .collect();
        let functions = text
            .split("static inline ")
            .skip(1)
            .filter_map(|part| part.split_once('('))
            .filter_map(|(head, _)| head.rsplit([' ', '*']).next().map(str::to_owned))
            .collect();
        Header { structs, constants, functions }
    }
}

impl Member {
    fn of(declaration: String) -> Member {
        let name = match declaration.split_once("(*") {
            Some((_, rest)) => rest.split(')').next(),
            None => declaration.split('[').next().and_then(|head| head.rsplit([' ', '*']).next()),
        };
        Member { name: name.unwrap().to_owned(), declaration }
    }
}

fn without_comments(text: &str) -> String {
    let mut pieces = text.split("/*");
    let mut kept = pieces.next().unwrap().to_owned();
    for piece in pieces {
        kept.push_str(piece.split_once("*/").unwrap().1);
    }
    kept
}

fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `int32_t (*f)(ws_conn conn)` as `unsafe extern "C" fn(conn: ws_conn) -> i32`.
pub fn rust_signature(declaration: &str) -> String {
    let (result, rest) = declaration.split_once("(*").unwrap();
    let (_, arguments) = rest.split_once(")(").unwrap();
    let arguments = arguments.strip_suffix(')').unwrap();
    let result = match rust_type(result.trim()).as_str() {
        "()" => String::new(),
        result => format!(" -> {result}"),
    };
    // The only function among arguments: void (*release)(void *arg).
    let arguments = arguments.replace("void (*release)(void *arg)", "RELEASE release");
    let arguments: Vec<String> =
        arguments.split(", ").filter(|argument| *argument != "void").map(rust_argument).collect();
    format!("unsafe extern \"C\" fn({}){result}", arguments.join(", "))
}

fn rust_argument(argument: &str) -> String {
    let at = argument.rfind([' ', '*']).unwrap() + 1;
    let name = if &argument[at..] == "type" { "type_" } else { &argument[at..] };
    format!("{name}: {}", rust_type(argument[..at].trim()))
}

fn rust_type(c: &str) -> String {
    let c = c.replace("struct ", "");
    if let Some(pointee) = c.strip_suffix('*') {
        let (kind, pointee) = match pointee.trim().strip_prefix("const ") {
            Some(pointee) => ("const", pointee),
            None => ("mut", pointee.trim()),
        };
        let pointee = if pointee == "void" { "c_void".to_owned() } else { rust_type(pointee) };
        return format!("*{kind} {pointee}");
    }
    match c.as_str() {
        "void" => "()",
        "char" => "c_char",
        "int32_t" => "i32",
        "uint32_t" => "u32",
        "int64_t" => "i64",
        "uint64_t" => "u64",
        "size_t" => "usize",
        "RELEASE" => "Option<unsafe extern \"C\" fn(arg: *mut c_void)>",
        other => return other.to_owned(),
    }
    .to_owned()
}
