//! From preprocessed Metal text to C++20, line for line.
//!
//! Macros alone do not do: a `threadgroup` array has to become an allocation of the running
//! threadgroup, and kernels and function constants have to register themselves.

use std::fmt::Write as _;

use crate::token::{Kind, Token, tokenize};

/// What the C++ is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To run: address spaces vanish, kernels register themselves.
    Run,
    /// To check only: address spaces become clang's, nothing is registered.
    Check,
}

/// A parameter of a kernel.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its type, address space included.
    pub declaration: String,
    /// The text between `[[` and `]]`, an entry for each attribute.
    pub attributes: Vec<String>,
}

/// A kernel's name and parameters.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The function's name in the source.
    pub name: String,
    /// Its parameters in order.
    pub parameters: Vec<Parameter>,
}

/// The result of a translation.
#[derive(Debug)]
pub struct Translation {
    /// The C++ text.
    pub text: String,
    /// The kernels, templates included.
    pub kernels: Vec<Kernel>,
}

const ADDRESS_SPACES: [&str; 4] = ["device", "constant", "threadgroup", "thread"];

struct Translator<'a> {
    tokens: Vec<Token<'a>>,
    mode: Mode,
    out: String,
    tail: String,
    kernels: Vec<Kernel>,
    entries: Vec<(String, String)>,
    constants: Vec<(String, String, u32)>,
    arrays: u32,
    templated: bool,
    /// Where the body of the last kernel ends.
    kernel_end: usize,
}

type Result<T> = std::result::Result<T, String>;

impl<'a> Translator<'a> {
    /// The index of the next token that is not space, from `i` on.
    fn solid(&self, mut i: usize) -> usize {
        while self.tokens.get(i).is_some_and(|t| t.kind == Kind::Space) {
            i += 1;
        }
        i
    }

    fn text(&self, i: usize) -> &'a str {
        self.tokens.get(i).map_or("", |t| t.text)
    }

    /// The next solid tokens from `i` spell `words`: the index after them.
    fn spells(&self, i: usize, words: &[&str]) -> Option<usize> {
        let mut i = i;
        for word in words {
            i = self.solid(i);
            if self.text(i) != *word {
                return None;
            }
            i += 1;
        }
        Some(i)
    }

    /// The index of the mark that closes the bracket at `open`.
    fn closing(&self, open: usize) -> Result<usize> {
        let mut depth = 0i32;
        for i in open..self.tokens.len() {
            match self.text(i) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(i);
                    }
                }
                _ => {}
            }
        }
        Err(format!("unclosed `{}`", self.text(open)))
    }

    fn slice(&self, from: usize, to: usize) -> String {
        self.tokens[from..to].iter().map(|t| t.text).collect()
    }

    /// Only the newlines of a range, to keep line numbers.
    fn newlines(&self, from: usize, to: usize) -> String {
        self.tokens[from..to].iter().flat_map(|t| t.text.matches('\n')).collect()
    }

    fn address_space(&self, word: &str) -> Option<&'static str> {
        match (self.mode, word) {
            (Mode::Run, "constant") => Some("const"),
            (Mode::Run, w) if ADDRESS_SPACES.contains(&w) => Some(""),
            (Mode::Check, "device") => Some("__attribute__((address_space(1)))"),
            (Mode::Check, "constant") => Some("const __attribute__((address_space(2)))"),
            (Mode::Check, "threadgroup") => Some("__attribute__((address_space(3)))"),
            (Mode::Check, "thread") => Some(""),
            _ => None,
        }
    }

    /// Copies a range, with address spaces replaced and attributes dropped.
    fn plain(&self, from: usize, to: usize) -> Result<String> {
        let mut out = String::new();
        let mut i = from;
        while i < to {
            if let Some(after) = self.spells(i, &["[", "["]).filter(|_| self.text(i) == "[") {
                let _ = after;
                let end = self.closing(i)?;
                out += &self.newlines(i, end);
                i = end + 1;
                continue;
            }
            let token = self.tokens[i];
            match self.address_space(token.text).filter(|_| token.kind == Kind::Word) {
                Some(space) => out += space,
                None => out += token.text,
            }
            i += 1;
        }
        Ok(out)
    }

    fn parameters(&self, open: usize, close: usize) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        let mut start = open + 1;
        let mut i = open + 1;
        while i <= close {
            match self.text(i) {
                "(" | "[" | "{" if i < close => i = self.closing(i)?,
                "," | ")" => {
                    let mut attributes = Vec::new();
                    let mut declaration = String::new();
                    let mut j = start;
                    while j < i {
                        if self.text(j) == "[" && self.text(j + 1) == "[" {
                            let end = self.closing(j)?;
                            attributes.extend(split_list(&self.slice(j + 2, end - 1)));
                            j = end + 1;
                        } else {
                            declaration += self.text(j);
                            j += 1;
                        }
                    }
                    parameters.push(Parameter { declaration: declaration.trim().to_owned(), attributes });
                    start = i + 1;
                }
                _ => {}
            }
            i += 1;
        }
        Ok(parameters)
    }

    /// `kernel void name(...)` at `i`, after the keyword: writes the function head.
    fn kernel(&mut self, keyword_end: usize) -> Result<usize> {
        let void = self.solid(keyword_end);
        let name = self.solid(void + 1);
        let open = self.solid(name + 1);
        if self.text(void) != "void" || self.text(open) != "(" {
            return Err(format!("a kernel is not `void name(...)`: {}", self.slice(keyword_end, open + 1)));
        }
        let close = self.closing(open)?;
        let kernel = Kernel { name: self.text(name).to_owned(), parameters: self.parameters(open, close)? };
        if self.mode == Mode::Run {
            self.out += "static ";
            let mut list = String::new();
            for p in &kernel.parameters {
                list += &emu_parameter(p)?;
            }
            writeln!(self.tail, "constexpr emu::Parameter emu_parameters_{}[] = {{{list}}};", kernel.name)
                .ok();
            if !self.templated {
                self.entries.push((format!("\"{}\"", kernel.name), kernel.name.clone()));
            }
        }
        let body = self.solid(close + 1);
        if self.text(body) != "{" {
            return Err(format!("kernel {} is declared without a body", kernel.name));
        }
        self.kernel_end = self.closing(body)?;
        self.out += &self.plain(keyword_end, close + 1)?;
        self.kernels.push(kernel);
        Ok(close + 1)
    }

    /// `template [[host_name(...)]] [[kernel]] decltype(f<...>) f<...>;` at `i`.
    fn instance(&mut self, i: usize) -> Result<Option<usize>> {
        let Some(after) = self.spells(i, &["template", "[", "[", "host_name", "("]) else { return Ok(None) };
        let open = after - 1;
        let close = self.closing(open)?;
        let name = self.slice(open + 1, close);
        let Some(decltype) =
            self.spells(close + 1, &["]", "]", "[", "[", "kernel", "]", "]", "decltype", "("])
        else {
            return Err(format!("an instance of {name} is not `[[kernel]] decltype(...) ...;`"));
        };
        let decltype_close = self.closing(decltype - 1)?;
        let function = self.slice(decltype, decltype_close);
        let end = (decltype_close..self.tokens.len())
            .find(|&t| self.text(t) == ";")
            .ok_or("unfinished instance")?;
        if self.slice(decltype_close + 1, end).split_whitespace().ne(function.split_whitespace()) {
            return Err(format!("instance {name} names two functions"));
        }
        match self.mode {
            Mode::Run => {
                self.out += &self.newlines(i, end + 1);
                self.entries.push((name, function));
            }
            Mode::Check => {
                self.out += "template ";
                self.out += &self.plain(decltype - 2, end + 1)?;
            }
        }
        Ok(Some(end + 1))
    }

    /// `constant bool x [[function_constant(n)]];` at `i`.
    fn function_constant(&mut self, i: usize) -> Result<Option<usize>> {
        if self.text(i) != "constant" {
            return Ok(None);
        }
        let kind = self.solid(i + 1);
        let name = self.solid(kind + 1);
        let Some(after) = self.spells(name + 1, &["[", "[", "function_constant", "("]) else {
            return Ok(None);
        };
        let close = self.closing(after - 1)?;
        let Some(end) = self.spells(close + 1, &["]", "]", ";"]) else {
            return Err("a function constant with more than one attribute".into());
        };
        let number = self.slice(after, close);
        let index = number.trim().parse().map_err(|_| format!("function constant index `{number}`"))?;
        let (kind, name) = (self.text(kind), self.text(name));
        if self.constants.iter().any(|(_, _, i)| *i == index) {
            return Err(format!("function constant {index} is declared twice"));
        }
        self.out += &match self.mode {
            Mode::Run => format!("static {kind} {name};"),
            Mode::Check => format!("extern const __attribute__((address_space(2))) {kind} {name};"),
        };
        self.constants.push((kind.to_owned(), name.to_owned(), index));
        Ok(Some(end))
    }

    /// `threadgroup T name[n];` as a statement at `i`.
    fn array(&mut self, i: usize) -> Result<Option<usize>> {
        if self.text(i) != "threadgroup" {
            return Ok(None);
        }
        let end = (i..self.tokens.len()).find(|&t| self.text(t) == ";").ok_or("unfinished statement")?;
        let open = (i..end).find(|&t| matches!(self.text(t), "[" | "*")).unwrap_or(end);
        match self.text(open) {
            "*" => return Ok(None),
            "[" => {}
            // Left as it is it would be private to each thread.
            _ => return Err(format!("neither a threadgroup array nor a pointer: {}", self.slice(i, end))),
        }
        if i > self.kernel_end {
            return Err(format!("a threadgroup array outside of a kernel: {}", self.slice(i, end)));
        }
        let close = self.closing(open)?;
        let name =
            (i..open).rev().find(|&t| self.tokens[t].kind == Kind::Word).ok_or("an array without a name")?;
        if self.solid(close + 1) != end {
            return Err(format!("one array to a threadgroup declaration: {}", self.slice(i, end)));
        }
        let (kind, size) = (self.slice(i + 1, name), self.slice(open + 1, close));
        let id = self.arrays;
        self.arrays += 1;
        self.out += &match self.mode {
            Mode::Run => format!(
                "auto &{0} = emu::threadgroup_array<{1}, ({size})>({id}, \"{0}\");",
                self.text(name),
                kind.trim()
            ),
            Mode::Check => {
                format!(
                    "static __attribute__((address_space(3))) {} {}[{size}];",
                    kind.trim(),
                    self.text(name)
                )
            }
        };
        Ok(Some(end + 1))
    }

    fn run(&mut self) -> Result<()> {
        let mut i = 0;
        let mut statement_start = true;
        while i < self.tokens.len() {
            let token = self.tokens[i];
            if token.kind == Kind::Space {
                self.out += token.text;
                i += 1;
                continue;
            }
            if statement_start && token.text == "template" {
                if let Some(next) = self.instance(i)? {
                    i = next;
                    continue;
                }
                self.templated = true;
            }
            let attribute = self.spells(i, &["[", "[", "kernel", "]", "]"]).filter(|_| token.text == "[");
            if let Some(next) = attribute.or((token.text == "kernel").then_some(i + 1)) {
                i = self.kernel(next)?;
                self.templated = false;
                statement_start = false;
                continue;
            }
            if statement_start
                && let Some(next) = match self.function_constant(i)? {
                    Some(next) => Some(next),
                    None => self.array(i)?,
                }
            {
                i = next;
                continue;
            }
            if token.text == "[" && self.text(i + 1) == "[" {
                i = self.closing(i)? + 1;
                continue;
            }
            match self.address_space(token.text).filter(|_| token.kind == Kind::Word) {
                Some(space) => self.out += space,
                None => self.out += token.text,
            }
            statement_start = matches!(token.text, ";" | "{" | "}");
            if statement_start {
                self.templated = false;
            }
            i += 1;
        }
        Ok(())
    }

    /// The registration of kernels and constants.
    fn registration(&self) -> String {
        let mut text = String::from("\n# 1 \"registration\"\nnamespace {\n");
        text += &self.tail;
        text += "}\nnamespace emu {\nconstexpr Kernel kernels[] = {\n";
        for (name, function) in &self.entries {
            let base = function.split('<').next().unwrap_or(function).trim();
            writeln!(
                text,
                "entry<decltype({function}), &{function}, emu_parameters_{base}>({name}, emu_parameters_{base}),"
            )
            .ok();
        }
        text += "{nullptr, nullptr, nullptr, nullptr, 0}};\n";
        writeln!(text, "constexpr uint kernel_count = {};", self.entries.len()).ok();
        text += "const Constant constants[] = {\n";
        for (kind, name, index) in &self.constants {
            writeln!(text, "{{{index}, {}, &{name}}},", if kind == "bool" { 1 } else { 2 }).ok();
        }
        text += "{0, 0, nullptr}};\n";
        writeln!(text, "constexpr uint constant_count = {};\n}}", self.constants.len()).ok();
        text
    }
}

fn split_list(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.into_iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

/// The argument of `name(...)` among a parameter's attributes.
#[must_use]
pub fn attribute_argument<'p>(parameter: &'p Parameter, name: &str) -> Option<&'p str> {
    parameter
        .attributes
        .iter()
        .find_map(|a| a.strip_prefix(name)?.trim().strip_prefix('(')?.strip_suffix(')'))
}

fn emu_parameter(parameter: &Parameter) -> Result<String> {
    if let Some(index) = attribute_argument(parameter, "buffer") {
        let present = attribute_argument(parameter, "function_constant")
            .map_or_else(|| "nullptr".to_owned(), |name| format!("&{name}"));
        return Ok(format!("{{emu::Kind::buffer, {index}, {present}}}, "));
    }
    match parameter.attributes.as_slice() {
        [builtin] => Ok(format!("{{emu::Kind::{builtin}, 0, nullptr}}, ")),
        _ => Err(format!("parameter `{}` does not have exactly one attribute", parameter.declaration)),
    }
}

/// Translates preprocessed text.
///
/// # Errors
/// A sentence when the text is not of the subset.
pub fn translate(preprocessed: &str, mode: Mode) -> Result<Translation> {
    let mut translator = Translator {
        tokens: tokenize(preprocessed),
        mode,
        out: String::new(),
        tail: String::new(),
        kernels: Vec::new(),
        entries: Vec::new(),
        constants: Vec::new(),
        arrays: 0,
        templated: false,
        kernel_end: 0,
    };
    translator.run()?;
    if mode == Mode::Run {
        let registration = translator.registration();
        translator.out += &registration;
    }
    Ok(Translation { text: translator.out, kernels: translator.kernels })
}
