//! Reads the macros and items that `objc2`'s generator writes.

use std::collections::BTreeMap;

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Attribute, Expr, Ident, Item, Meta, Signature, Token, Type, Visibility, braced};

/// A method, still in Rust's terms.
#[derive(Clone, Debug)]
pub struct Method {
    /// The selector; it ends in `:_` when an error comes through a last argument.
    pub selector: String,
    /// Arguments, result, and whether there is a receiver.
    pub signature: Signature,
}

/// A class with what is known of it.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// Whether its own framework was read, and not only methods that others add.
    pub declared: bool,
    /// The superclass.
    pub superclass: String,
    /// Methods of all its parts.
    pub methods: Vec<Method>,
    /// Protocols that it says it has.
    pub protocols: Vec<String>,
}

/// A protocol.
#[derive(Clone, Debug, Default)]
pub struct Protocol {
    /// The protocols that it builds on.
    pub bases: Vec<String>,
    /// Its methods.
    pub methods: Vec<Method>,
}

/// An enumeration or a set of flags: the type below, and names with their values.
#[derive(Clone, Debug)]
pub struct Values {
    /// The integer type.
    pub of: Type,
    /// C name, Rust name, value.
    pub values: Vec<(String, String, Expr)>,
}

/// Everything that was read.
#[derive(Clone, Debug, Default)]
pub struct Declarations {
    /// By name.
    pub classes: BTreeMap<String, Class>,
    /// By name.
    pub protocols: BTreeMap<String, Protocol>,
    /// By name.
    pub enums: BTreeMap<String, Values>,
    /// Structures: names and types of their fields.
    pub structs: BTreeMap<String, Vec<(String, Type)>>,
    /// Names for other types.
    pub aliases: BTreeMap<String, Type>,
    /// Integer constants.
    pub constants: Vec<(String, Type, Expr)>,
    /// Functions of C.
    pub functions: Vec<Signature>,
    /// Variables of C.
    pub statics: Vec<(String, Type)>,
}

/// `#[doc(alias = "NAME")]`: the name in C.
fn c_name(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::List(list) = &attribute.meta else { return None };
        let text = list.tokens.to_string();
        (list.path.is_ident("doc") && text.starts_with("alias"))
            .then(|| text.split('"').nth(1).unwrap_or_default().to_owned())
    })
}

/// The argument of `#[unsafe(WHAT(...))]`, without spaces.
fn told(attributes: &[Attribute], what: &str) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let text: String = attribute.to_token_stream().to_string().split_whitespace().collect();
        let text = text.strip_prefix("#[unsafe(")?.strip_suffix(")]")?;
        Some(text.strip_prefix(what)?.strip_prefix('(')?.strip_suffix(')')?.to_owned())
    })
}

fn methods(input: ParseStream) -> syn::Result<Vec<Method>> {
    let mut found = Vec::new();
    while !input.is_empty() {
        let attributes = input.call(Attribute::parse_outer)?;
        input.parse::<Visibility>()?;
        let signature: Signature = input.parse()?;
        input.parse::<Token![;]>()?;
        if let Some(selector) = told(&attributes, "method") {
            found.push(Method { selector, signature });
        }
    }
    Ok(found)
}

struct ClassMacro(String, String);

impl Parse for ClassMacro {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        input.parse::<Visibility>()?;
        input.parse::<Token![struct]>()?;
        let name: Ident = input.parse()?;
        input.parse::<TokenStream>()?;
        let supers = told(&attributes, "super").unwrap_or_else(|| "NSObject".into());
        // The generic parameters of a superclass are of no use here.
        let first = supers.split([',', '<']).next().unwrap_or_default().to_owned();
        Ok(Self(name.to_string(), first))
    }
}

struct ProtocolMacro(String, Protocol);

impl Parse for ProtocolMacro {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        input.call(Attribute::parse_outer)?;
        input.parse::<Visibility>()?;
        input.parse::<Token![unsafe]>()?;
        input.parse::<Token![trait]>()?;
        let name: Ident = input.parse()?;
        let mut bases = Vec::new();
        if input.parse::<Option<Token![:]>>()?.is_some() {
            while !input.peek(syn::token::Brace) {
                let path: syn::Path = input.parse()?;
                bases.extend(path.segments.last().map(|segment| segment.ident.to_string()));
                input.parse::<Option<Token![+]>>()?;
            }
        }
        let body;
        braced!(body in input);
        Ok(Self(name.to_string(), Protocol { bases, methods: methods(&body)? }))
    }
}

struct FlagsMacro(Vec<(String, String, Expr)>);

impl Parse for FlagsMacro {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        input.call(Attribute::parse_outer)?;
        input.parse::<Token![impl]>()?;
        input.parse::<Type>()?;
        input.parse::<Token![:]>()?;
        input.parse::<Type>()?;
        let body;
        braced!(body in input);
        let mut values = Vec::new();
        while !body.is_empty() {
            let attributes = body.call(Attribute::parse_outer)?;
            body.parse::<Token![const]>()?;
            let name = if body.peek(Token![_]) {
                body.parse::<Token![_]>()?;
                "_".into()
            } else {
                body.parse::<Ident>()?.to_string()
            };
            body.parse::<Token![=]>()?;
            let value: Expr = body.parse()?;
            body.parse::<Token![;]>()?;
            values.extend(c_name(&attributes).map(|c| (c, name, value)));
        }
        Ok(Self(values))
    }
}

/// The last name of a type's path.
pub fn last_name(of: &Type) -> Option<String> {
    let Type::Path(path) = of else { return None };
    path.path.segments.last().map(|segment| segment.ident.to_string())
}

impl Declarations {
    /// Reads one generated file.
    ///
    /// # Errors
    /// When it is not what the generator writes today.
    pub fn read(&mut self, text: &str) -> syn::Result<()> {
        for item in syn::parse_file(text)?.items {
            self.item(item)?;
        }
        Ok(())
    }

    fn item(&mut self, item: Item) -> syn::Result<()> {
        match item {
            Item::Macro(item) => self.macro_item(&item.mac)?,
            Item::Struct(item) => {
                let name = item.ident.to_string();
                match &item.fields {
                    // An enumeration is a structure around its integer.
                    syn::Fields::Unnamed(fields) if fields.unnamed.len() == 1 => {
                        let of = fields.unnamed[0].ty.clone();
                        self.enums.entry(name).or_insert(Values { of, values: Vec::new() });
                    }
                    syn::Fields::Named(fields) => {
                        let fields = fields.named.iter().map(|f| {
                            (f.ident.as_ref().map(Ident::to_string).unwrap_or_default(), f.ty.clone())
                        });
                        self.structs.insert(name, fields.collect());
                    }
                    _ => {}
                }
            }
            Item::Impl(item) if item.trait_.is_none() => self.inherent(item)?,
            Item::Type(item) => {
                self.aliases.insert(item.ident.to_string(), *item.ty);
            }
            Item::Const(item) => self.constants.push((item.ident.to_string(), *item.ty, *item.expr)),
            Item::Fn(item) => self.functions.push(item.sig),
            Item::ForeignMod(item) => {
                for item in item.items {
                    match item {
                        syn::ForeignItem::Fn(item) => self.functions.push(item.sig),
                        syn::ForeignItem::Static(item) => {
                            self.statics.push((item.ident.to_string(), *item.ty));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn macro_item(&mut self, mac: &syn::Macro) -> syn::Result<()> {
        let name = mac.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        match name.as_str() {
            "extern_class" => {
                let ClassMacro(name, superclass) = mac.parse_body()?;
                let class = self.classes.entry(name).or_default();
                class.declared = true;
                class.superclass = superclass;
            }
            "extern_protocol" => {
                let ProtocolMacro(name, protocol) = mac.parse_body()?;
                self.protocols.insert(name, protocol);
            }
            "extern_conformance" => {
                let item: syn::ItemImpl = mac.parse_body()?;
                let protocol =
                    item.trait_.and_then(|(_, path, _)| Some(path.segments.last()?.ident.to_string()));
                if let (Some(protocol), Some(class)) = (protocol, last_name(&item.self_ty)) {
                    self.classes.entry(class).or_default().protocols.push(protocol);
                }
            }
            // `bitflags::bitflags! { impl FLAGS: TYPE { ... } }`
            "bitflags" => {
                let name = mac.tokens.clone().into_iter().nth(1).map(|t| t.to_string()).unwrap_or_default();
                let FlagsMacro(values) = mac.parse_body()?;
                if let Some(known) = self.enums.get_mut(&name) {
                    known.values = values;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inherent(&mut self, item: syn::ItemImpl) -> syn::Result<()> {
        let Some(name) = last_name(&item.self_ty) else { return Ok(()) };
        for part in item.items {
            match part {
                syn::ImplItem::Macro(part) if part.mac.path.is_ident("extern_methods") => {
                    let found = methods.parse2(part.mac.tokens)?;
                    self.classes.entry(name.clone()).or_default().methods.extend(found);
                }
                syn::ImplItem::Const(part) => {
                    if let (Some(c), Some(known)) = (c_name(&part.attrs), self.enums.get_mut(&name)) {
                        known.values.push((c, part.ident.to_string(), part.expr));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
