//! `proto/cri.proto` is CRI v1: every message, field, number, type, option, enumeration and call of
//! the table `tests/data/cri-v1.tsv`, and nothing else.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const TABLE: &str = include_str!("data/cri-v1.tsv");
const PACKAGE: &str = "runtime.v1";

#[test]
fn the_definition_is_the_table() {
    let expected: BTreeSet<String> = TABLE.lines().skip(1).map(|l| l.trim_end().to_owned()).collect();
    let found: BTreeSet<String> = rows(&cri()).into_iter().map(|l| l.trim_end().to_owned()).collect();
    let source = expected.iter().filter(|l| l.starts_with("meta\tsource")).count();
    assert_eq!(source, 1, "the table says where it comes from");
    let missing: Vec<_> = expected.difference(&found).filter(|l| !l.starts_with("meta\tsource")).collect();
    let surplus: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nnot in the table: {surplus:#?}");
}

#[test]
fn every_message_field_and_call_of_ours_is_reachable_by_name_once() {
    let set = FileDescriptorSet::decode(aril::api::DESCRIPTOR).unwrap();
    let packages: Vec<_> = set.file.iter().map(FileDescriptorProto::package).collect();
    assert_eq!(packages.iter().filter(|p| **p == PACKAGE).count(), 1, "{packages:?}");
    let rows = rows(&cri());
    let unique: BTreeSet<_> = rows.iter().collect();
    assert_eq!(rows.len(), unique.len());
}

#[test]
fn secrets_are_marked_and_not_printed() {
    let auth = aril::api::cri::AuthConfig {
        username: "user-name".to_owned(),
        password: "pass-word".to_owned(),
        auth: "basic-auth".to_owned(),
        server_address: "registry.example".to_owned(),
        identity_token: "identity-token".to_owned(),
        registry_token: "registry-token".to_owned(),
    };
    let shown = format!("{:?}", aril::api::cri::PullImageRequest { auth: Some(auth), ..Default::default() });
    for secret in ["pass-word", "basic-auth", "identity-token", "registry-token"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("registry.example"), "{shown}");
}

fn cri() -> FileDescriptorProto {
    let set = FileDescriptorSet::decode(aril::api::DESCRIPTOR).expect("the build wrote a descriptor set");
    set.file.into_iter().find(|f| f.package() == PACKAGE).expect("cri.proto is part of it")
}

/// The table's rows as the definition has them, totals included.
fn rows(file: &FileDescriptorProto) -> Vec<String> {
    assert_eq!(file.syntax(), "proto3");
    let mut rows = Vec::new();
    for message in &file.message_type {
        message_rows("", message, &mut rows);
    }
    for enumeration in &file.enum_type {
        enum_rows("", enumeration, &mut rows);
    }
    for service in &file.service {
        service_rows(service, &mut rows);
    }
    let count = |kind: &str| rows.iter().filter(|r| r.split('\t').next() == Some(kind)).count();
    let totals = [
        ("messages", count("msg")),
        ("fields", count("field")),
        ("enums", count("enum")),
        ("enum_values", count("value")),
        ("services", file.service.len()),
        ("rpcs", count("rpc")),
    ];
    rows.extend(totals.map(|(name, total)| format!("meta\t{name}\t{total}")));
    rows
}

fn message_rows(outer: &str, message: &DescriptorProto, rows: &mut Vec<String>) {
    let name = format!("{outer}{}", message.name());
    rows.push(format!("msg\t{name}\t\t{}", message.field.len()));
    for field in &message.field {
        rows.push(field_row(&name, message, field));
    }
    for nested in message.nested_type.iter().filter(|m| !is_map_entry(m)) {
        message_rows(&format!("{name}."), nested, rows);
    }
    for enumeration in &message.enum_type {
        enum_rows(&format!("{name}."), enumeration, rows);
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|o| o.map_entry())
}

fn field_row(parent: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let map = message.nested_type.iter().find(|m| is_map_entry(m) && field.type_name().ends_with(&suffix(parent, m)));
    let (kind, label) = match map {
        Some(entry) => (format!("map<{},{}>", type_name(&entry.field[0]), type_name(&entry.field[1])), "map"),
        None if field.label() == Label::Repeated => (type_name(field), "repeated"),
        None => (type_name(field), "singular"),
    };
    let oneof = field.oneof_index.map_or("", |i| message.oneof_decl[usize::try_from(i).expect("an index")].name());
    let options = options::of(parent, field.name());
    format!("field\t{parent}\t{}\t{}\t{kind}\t{label}\t{oneof}\t{options}", field.name(), field.number())
}

fn suffix(parent: &str, nested: &DescriptorProto) -> String {
    format!(".{parent}.{}", nested.name())
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let named = field.type_name().trim_start_matches('.').trim_start_matches(PACKAGE).trim_start_matches('.');
    match field.r#type() {
        Type::Message => format!("message {named}"),
        Type::Enum => format!("enum {named}"),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn enum_rows(outer: &str, enumeration: &EnumDescriptorProto, rows: &mut Vec<String>) {
    let name = format!("{outer}{}", enumeration.name());
    rows.push(format!("enum\t{name}\t\t{}", enumeration.value.len()));
    rows.extend(enumeration.value.iter().map(|v| format!("value\t{name}\t{}\t{}", v.name(), v.number())));
}

fn service_rows(service: &ServiceDescriptorProto, rows: &mut Vec<String>) {
    for method in &service.method {
        let kind = match (method.client_streaming(), method.server_streaming()) {
            (false, false) => "unary",
            (false, true) => "server",
            (true, false) => "client",
            (true, true) => "bidi",
        };
        let short =
            |name: &str| name.trim_start_matches('.').trim_start_matches(PACKAGE).trim_start_matches('.').to_owned();
        let (input, output) = (short(method.input_type()), short(method.output_type()));
        rows.push(format!("rpc\t{}\t{}\t\t{input} -> {output}\t{kind}", service.name(), method.name()));
    }
}

/// Options of fields, read by hand: the descriptor types in use know `debug_redact` not yet.
mod options {
    use prost::Message;

    use super::PACKAGE;

    // The parts of google/protobuf/descriptor.proto that lead to them.
    #[derive(Clone, PartialEq, Message)]
    struct Set {
        #[prost(message, repeated, tag = "1")]
        file: Vec<File>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct File {
        #[prost(string, tag = "2")]
        package: String,
        #[prost(message, repeated, tag = "4")]
        message_type: Vec<Type>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Type {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        field: Vec<Field>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Field {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "8")]
        options: Option<Options>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Options {
        #[prost(bool, tag = "3")]
        deprecated: bool,
        #[prost(bool, tag = "16")]
        debug_redact: bool,
    }

    /// As the table writes them.
    pub fn of(message: &str, field: &str) -> String {
        let set = Set::decode(aril::api::DESCRIPTOR).expect("the build wrote a descriptor set");
        let files = set.file.iter().filter(|f| f.package == PACKAGE);
        let types = files.flat_map(|f| &f.message_type).filter(|m| m.name == message);
        let Some(options) = types.flat_map(|m| &m.field).find(|f| f.name == field).and_then(|f| f.options.clone())
        else {
            return String::new();
        };
        let named = [("deprecated=true", options.deprecated), ("debug_redact=true", options.debug_redact)];
        named.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name).collect::<Vec<_>>().join(",")
    }
}
