//! Writes declarations in Objective-C.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use quote::ToTokens;
use syn::{Expr, FnArg, GenericArgument, Pat, PathArguments, ReturnType, Signature, Type};

use crate::parse::{Class, Declarations, Method, last_name};

const BASE: &str = include_str!("../base/base.h");
const VARIADIC: &str = include_str!("../base/variadic.h");

/// Protocols of `base.h`.
const BASE_PROTOCOLS: [&str; 3] = ["NSObject", "NSCopying", "NSMutableCopying"];

/// Types of Rust and of `base.h`, by their names in the sources.
const PLAIN: [(&str, &str); 35] = [
    ("NSInteger", "NSInteger"),
    ("NSUInteger", "NSUInteger"),
    ("NSRange", "NSRange"),
    ("NSRangePointer", "NSRange *"),
    ("NSZone", "NSZone"),
    ("NSFastEnumerationState", "NSFastEnumerationState"),
    ("NSComparisonResult", "NSComparisonResult"),
    ("NSTimeInterval", "NSTimeInterval"),
    ("CFTimeInterval", "CFTimeInterval"),
    ("CGFloat", "CGFloat"),
    ("unichar", "unichar"),
    ("AnyClass", "Class"),
    ("Sel", "SEL"),
    ("bool", "BOOL"),
    ("Bool", "BOOL"),
    ("c_void", "void"),
    ("c_char", "char"),
    ("c_int", "int"),
    ("c_uint", "unsigned int"),
    ("c_long", "long"),
    ("c_ulong", "unsigned long"),
    ("c_longlong", "long long"),
    ("c_ulonglong", "unsigned long long"),
    ("c_short", "short"),
    ("c_ushort", "unsigned short"),
    ("c_uchar", "unsigned char"),
    ("c_float", "float"),
    ("c_double", "double"),
    ("u8", "uint8_t"),
    ("i8", "int8_t"),
    ("u16", "uint16_t"),
    ("u32", "uint32_t"),
    ("i32", "int32_t"),
    ("u64", "uint64_t"),
    ("i64", "int64_t"),
];

/// What is inside `Name<T>`.
fn inner(of: &Type) -> Option<&Type> {
    let Type::Path(path) = of else { return None };
    let PathArguments::AngleBracketed(arguments) = &path.path.segments.last()?.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(of) => Some(of),
        _ => None,
    })
}

/// The C names of enumerators by their Rust names: `MTLStorageMode::Shared` to `MTLStorageModeShared`.
type Enumerators = BTreeMap<(String, String), String>;

struct Writer<'a> {
    known: &'a Declarations,
    enumerators: Enumerators,
}

impl Writer<'_> {
    /// A type that stands behind a pointer, or `None` when it is not known.
    fn pointee(&self, of: &Type) -> Option<String> {
        match last_name(of).as_deref() {
            Some("ProtocolObject") => {
                let Type::TraitObject(object) = inner(of)? else { return None };
                let name = object.bounds.iter().find_map(|bound| match bound {
                    syn::TypeParamBound::Trait(bound) => Some(bound.path.segments.last()?.ident.to_string()),
                    _ => None,
                })?;
                Some(if name == "NSObjectProtocol" { "id<NSObject>".into() } else { format!("id<{name}>") })
            }
            Some("AnyObject" | "ObjectType" | "KeyType" | "DynBlock") => Some("id".into()),
            Some("AnyClass") => Some("Class".into()),
            Some("NSObject") => Some("NSObject *".into()),
            Some("Option") => self.pointee(inner(of)?),
            Some("Retained") => self.pointee(inner(of)?),
            Some(name) if self.known.classes.contains_key(name) => Some(format!("{name} *")),
            Some(name) if self.known.aliases.contains_key(name) => self.pointee(&self.known.aliases[name]),
            _ => None,
        }
    }

    /// A type as an argument, a result or a field, or `None` when it is not known.
    fn value(&self, of: &Type) -> Option<String> {
        match of {
            Type::Reference(reference) => self.pointer(&reference.elem),
            Type::Ptr(pointer) => self.pointer(&pointer.elem),
            Type::Tuple(tuple) if tuple.elems.is_empty() => Some("void".into()),
            Type::Path(_) => {
                let name = last_name(of)?;
                if let Some((_, c)) = PLAIN.iter().find(|(rust, _)| *rust == name) {
                    return Some((*c).into());
                }
                match name.as_str() {
                    "Option" => self.value(inner(of)?),
                    "NonNull" => self.pointer(inner(of)?),
                    "Retained" | "Allocated" => match last_name(inner(of)?).as_deref() {
                        Some("Self") => Some("instancetype".into()),
                        _ => self.pointee(inner(of)?),
                    },
                    _ if self.known.enums.contains_key(&name) || self.known.structs.contains_key(&name) => {
                        Some(name)
                    }
                    _ => self.value(self.known.aliases.get(&name)?),
                }
            }
            _ => None,
        }
    }

    /// An argument. `NonNull` does not tell whether the memory behind it is const: taken to be.
    fn argument(&self, of: &Type) -> Option<String> {
        let plain = last_name(of).as_deref() == Some("NonNull")
            && inner(of).is_some_and(|to| self.pointee(to).is_none());
        Some(format!("{}{}", if plain { "const " } else { "" }, self.value(of)?))
    }

    fn pointer(&self, to: &Type) -> Option<String> {
        // A pointer to an object is the object's type; to such a pointer, one more star.
        if let Type::Path(_) = to
            && !matches!(last_name(to).as_deref(), Some("Option" | "NonNull"))
            && let Some(object) = self.pointee(to)
        {
            return Some(object);
        }
        Some(format!("{} *", self.value(to)?))
    }

    fn result(&self, signature: &Signature) -> Option<String> {
        let ReturnType::Type(_, of) = &signature.output else { return Some("void".into()) };
        match last_name(of).as_deref() {
            Some("Result") => match inner(of)? {
                Type::Tuple(_) => Some("BOOL".into()),
                of => self.value(of),
            },
            _ => self.value(of),
        }
    }

    fn method(&self, method: &Method, allocated: bool) -> Option<String> {
        let mut receiver = false;
        let mut types = Vec::new();
        for argument in &method.signature.inputs {
            match argument {
                FnArg::Receiver(_) => receiver = true,
                FnArg::Typed(typed) if matches!(&*typed.pat, Pat::Ident(name) if name.ident == "this") => {
                    receiver = true;
                }
                FnArg::Typed(typed) => types.push(self.argument(&typed.ty)?),
            }
        }
        let selector = match method.selector.strip_suffix('_') {
            Some(selector) => {
                types.push("NSError **".into());
                selector
            }
            None => &method.selector,
        };
        let result = self.result(&method.signature)?;
        let mut text = format!("{} ({result})", if receiver { '-' } else { '+' });
        if types.is_empty() {
            text += selector;
        } else {
            let parts: Vec<&str> = selector.split_terminator(':').collect();
            if parts.len() != types.len() {
                return None;
            }
            for (index, (part, of)) in parts.iter().zip(&types).enumerate() {
                let _ = write!(text, "{}{part}:({of})a{index}", if index == 0 { "" } else { " " });
            }
        }
        // alloc and new of every class are NSObject's.
        let own = !(allocated && types.is_empty() && ["alloc", "new", "init"].contains(&selector));
        own.then_some(text)
    }

    /// A value of an enumeration in C.
    fn expression(&self, value: &Expr, own: &str) -> Option<String> {
        Some(match value {
            Expr::Lit(literal) => literal.lit.to_token_stream().to_string(),
            Expr::Paren(inside) => format!("({})", self.expression(&inside.expr, own)?),
            Expr::Unary(unary) => {
                let operator = match unary.op {
                    syn::UnOp::Neg(_) => "-",
                    syn::UnOp::Not(_) => "~",
                    _ => return None,
                };
                format!("{operator}{}", self.expression(&unary.expr, own)?)
            }
            Expr::Cast(cast) => self.expression(&cast.expr, own)?,
            Expr::Binary(binary) => format!(
                "({} {} {})",
                self.expression(&binary.left, own)?,
                binary.op.to_token_stream(),
                self.expression(&binary.right, own)?
            ),
            Expr::Call(call) => self.expression(call.args.first()?, own)?,
            Expr::Field(field) => self.expression(&field.base, own)?,
            Expr::Path(path) => {
                let names: Vec<String> = path.path.segments.iter().map(|s| s.ident.to_string()).collect();
                match names.as_slice() {
                    [name] => name.clone(),
                    [of, name] => {
                        let of = if of == "Self" { own } else { of };
                        self.enumerators.get(&(of.to_owned(), name.clone()))?.clone()
                    }
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    fn conformances(&self, names: &[String]) -> String {
        let names: BTreeSet<String> = names
            .iter()
            .map(|name| if name == "NSObjectProtocol" { "NSObject".to_owned() } else { name.clone() })
            .filter(|name| BASE_PROTOCOLS.contains(&name.as_str()) || self.known.protocols.contains_key(name))
            .collect();
        if names.is_empty() {
            String::new()
        } else {
            format!(" <{}>", names.into_iter().collect::<Vec<_>>().join(", "))
        }
    }
}

/// Names so that each comes after those that it builds on.
fn ordered<'a>(names: impl Iterator<Item = &'a String>, bases: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    fn visit(name: &str, bases: &dyn Fn(&str) -> Vec<String>, done: &mut Vec<String>) {
        if !done.iter().any(|d| d == name) {
            for base in bases(name) {
                visit(&base, bases, done);
            }
            done.push(name.to_owned());
        }
    }
    let mut done = Vec::new();
    names.for_each(|name| visit(name, &bases, &mut done));
    done
}

/// The first systems of a name.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// macOS.
    pub macos: (u32, u32),
    /// iOS.
    pub ios: (u32, u32),
}

impl Since {
    fn attribute(self) -> String {
        let version = |name: &str, (major, minor)| {
            format!(" __attribute__((availability({name}, introduced={major}.{minor})))")
        };
        version("macos", self.macos) + &version("ios", self.ios)
    }
}

/// First systems of what the shims use of Metal and its frameworks: `name macos ios` by line; a name
/// is a selector, an enumerator, a class, a function or a variable.
///
/// # Errors
/// When a line is something else.
pub fn availability(table: &str) -> Result<BTreeMap<&str, Since>, String> {
    let version = |text: &str| -> Option<(u32, u32)> {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let lines = table.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let since = match words.as_slice() {
                [_, macos, ios] => version(macos).zip(version(ios)),
                _ => None,
            };
            let (macos, ios) = since.ok_or_else(|| format!("`{line}` is not `name macos ios`"))?;
            Ok((words[0], Since { macos, ios }))
        })
        .collect()
}

/// All declarations of an SDK as one header: without what is younger than its macOS.
///
/// # Errors
/// When the table of first systems cannot be read, or names what is not declared.
pub fn header(mut known: Declarations, table: &str, newest_macos: u32) -> Result<String, String> {
    let since = availability(table)?;
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let younger: BTreeSet<&str> =
        since.iter().filter(|(_, since)| since.macos.0 > newest_macos).map(|(name, _)| *name).collect();
    used.extend(&younger);
    known.classes.retain(|name, _| !younger.contains(name.as_str()));
    let known = &known;
    // What the table leaves out cannot be used, so that the table names all that is used. Nothing of what the SDK
    // lacks.
    let mut mark = |owner: &str, name: &str| -> Option<String> {
        if younger.contains(name) {
            return None;
        }
        Some(match since.get_key_value(name) {
            Some((key, since)) => {
                used.insert(*key);
                since.attribute()
            }
            None if owner.starts_with("MTL") || owner.starts_with("MPS") => {
                " __attribute__((unavailable(\"its first system is not in availability.txt\")))".into()
            }
            None => String::new(),
        })
    };
    let enumerators = known
        .enums
        .iter()
        .flat_map(|(name, e)| e.values.iter().map(|(c, rust, _)| ((name.clone(), rust.clone()), c.clone())))
        .collect();
    let writer = Writer { known, enumerators };
    let mut out = format!("#pragma once\n{BASE}\n#ifdef __OBJC__\n");
    let (classes, protocols) = (&known.classes, &known.protocols);
    for name in classes.keys().filter(|name| *name != "NSObject") {
        let _ = writeln!(out, "@class {name};");
    }
    for name in protocols.keys() {
        let _ = writeln!(out, "@protocol {name};");
    }
    for (name, of, value) in &known.constants {
        // Versions are floating-point constants, and some name others: no shim needs either.
        let integer = matches!(value, Expr::Lit(literal) if matches!(literal.lit, syn::Lit::Int(_)));
        if let (true, Some(of), Some(value)) = (integer, writer.value(of), writer.expression(value, "")) {
            let _ = writeln!(out, "enum : {of} {{ {name} = {value} }};");
        }
    }
    for name in &ordered(known.enums.keys(), |name| enums_named_by(known, name)) {
        let values = &known.enums[name];
        let Some(of) = writer.value(&values.of) else { continue };
        let _ = writeln!(out, "typedef enum {name} : {of} {name};\nenum {name} : {of} {{");
        // Names of values that the SDK lacks stand for others, and go with them.
        let whole = !values.values.iter().any(|(c, ..)| younger.contains(c.as_str()));
        for (c, _, value) in &values.values {
            if let (Some(value), Some(mark), true) = (writer.expression(value, name), mark(name, c), whole) {
                let _ = writeln!(out, "    {c}{mark} = {value},");
            }
        }
        let _ = writeln!(out, "    {name}_ = 0\n}};");
    }
    structs(&writer, &mut out);
    for name in ordered(protocols.keys(), |name| {
        let bases = protocols.get(name).map(|p| p.bases.clone()).unwrap_or_default();
        bases.into_iter().filter(|base| protocols.contains_key(base)).collect()
    }) {
        let protocol = &protocols[&name];
        let _ = writeln!(out, "@protocol {name}{}", writer.conformances(&protocol.bases));
        for method in &protocol.methods {
            let mark = mark(&name, method.selector.trim_end_matches('_'));
            if let (Some(text), Some(mark)) = (writer.method(method, false), mark) {
                let _ = writeln!(out, "{text}{mark};");
            }
        }
        out += "@end\n";
    }
    for name in ordered(classes.keys(), |name| {
        classes
            .get(name)
            .map(|c| c.superclass.clone())
            .into_iter()
            .filter(|s| classes.contains_key(s))
            .collect()
    }) {
        if name == "NSObject" {
            continue;
        }
        let class = &classes[&name];
        // Of others a shim may use the type, but no class: the linked programs are checked for that.
        let own = since.contains_key(name.as_str()).then(|| mark(&name, &name)).flatten();
        let own = if name == "NSException" { Some(" __attribute__((objc_exception))".into()) } else { own };
        interface(&writer, &mut out, &name, class, &own.unwrap_or_default(), &mut mark);
    }
    out += VARIADIC;
    for signature in &known.functions {
        let name = signature.ident.to_string();
        if let (Some(text), Some(mark)) = (function(&writer, signature), mark(&name, &name)) {
            let _ = writeln!(out, "{text}{mark};");
        }
    }
    for (name, of) in &known.statics {
        if let (Some(of), Some(mark)) = (writer.value(of), mark(name, name)) {
            let _ = writeln!(out, "extern {of} const {name}{mark};");
        }
    }
    out += "#endif\n";
    match since.keys().find(|name| !used.contains(**name)) {
        Some(name) => Err(format!("`{name}` of the table of first systems is not declared")),
        None => Ok(out),
    }
}

/// The other enumerations that an enumeration's values name.
fn enums_named_by(known: &Declarations, name: &str) -> Vec<String> {
    let text: String =
        known.enums[name].values.iter().map(|(.., v)| format!("{} ", v.to_token_stream())).collect();
    let mut named: Vec<String> = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| *word != name && known.enums.contains_key(*word))
        .map(str::to_owned)
        .collect();
    named.dedup();
    named
}

fn structs(writer: &Writer, out: &mut String) {
    let all = &writer.known.structs;
    let order = ordered(all.keys(), |name| {
        let fields = all.get(name).map(Vec::as_slice).unwrap_or_default();
        fields.iter().filter_map(|(_, of)| last_name(of)).filter(|of| all.contains_key(of)).collect()
    });
    let mut complete = BTreeSet::new();
    for name in &order {
        let field = |(field, of): &(String, Type)| {
            let whole = last_name(of).is_none_or(|of| !all.contains_key(&of) || complete.contains(&of));
            whole.then(|| Some(format!("    {} {field};\n", writer.value(of)?))).flatten()
        };
        let fields: Option<Vec<String>> = all[name].iter().map(field).collect();
        if fields.is_some() {
            complete.insert(name.clone());
        }
        let _ = match fields {
            Some(fields) => writeln!(out, "typedef struct {name} {{\n{}}} {name};", fields.concat()),
            None => writeln!(out, "typedef struct {name} {name};"),
        };
    }
}

fn interface(
    writer: &Writer,
    out: &mut String,
    name: &str,
    class: &Class,
    own: &str,
    mark: &mut dyn FnMut(&str, &str) -> Option<String>,
) {
    let known = &writer.known.classes;
    let superclass = if known.contains_key(&class.superclass) { &class.superclass } else { "NSObject" };
    let _ = writeln!(out, "{own}\n@interface {name} : {superclass}{}", writer.conformances(&class.protocols));
    for method in &class.methods {
        let mark = mark(name, method.selector.trim_end_matches('_'));
        if let (Some(text), Some(mark)) = (writer.method(method, true), mark) {
            let _ = writeln!(out, "{text}{mark};");
        }
    }
    out.push_str("@end\n");
}

fn function(writer: &Writer, signature: &Signature) -> Option<String> {
    let arguments: Option<Vec<String>> = signature
        .inputs
        .iter()
        .map(|argument| match argument {
            FnArg::Typed(typed) => writer.value(&typed.ty),
            FnArg::Receiver(_) => None,
        })
        .collect();
    let arguments = arguments?;
    let arguments = if arguments.is_empty() { "void".into() } else { arguments.join(", ") };
    Some(format!("{} {}({arguments})", writer.result(signature)?, signature.ident))
}
