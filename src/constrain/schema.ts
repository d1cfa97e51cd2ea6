/**
 * A JSON Schema as a grammar of the JSON texts that are valid for it. If it must be strict, what the grammar says is a subset of
 * what the schema allows, never more, and what cannot be said is refused by keyword; else the keyword is left out and named.
 * Properties come in the order of their declaration.
 *
 * Lengths of strings are no part of the grammar, where each character would be a state with a mask of its own:
 * string-limits.ts counts them as the text arrives.
 */
import { PerigeeError, perigeeError } from '../errors.ts';
import { inJsonString, unlike } from './code-points.ts';
import { formats } from './formats.ts';
import {
  annotations,
  assertions,
  disjoint,
  endsSomewhere,
  merged,
  otherProperties,
  type Schema,
  schemaTypes,
  typesOf,
  unenforceable,
  withoutTuple,
} from './keywords.ts';
import { anyInteger, anyNumber, bounds, numbersBetween } from './numbers.ts';
import { patternGrammar } from './pattern.ts';
import { literal, Rules, repeated } from './rules.ts';
import { pointed } from './string-limits.ts';

const mostDepth = 64;
const mostItems = 256;
const mostNamed = 32;
const mostNameCharacters = 64;
/** Parts of the schema, those that several references repeat counted each time. */
const mostValues = 20_000;

/** A line feed and indentation, or one space, between two parts: more would let a model go on for ever. */
const space = '[ ]? | "\\n" [ \\t]{0,32}';
/** After a string only these follow; told to the library, which then decides on whole tokens while compiling. */
const afterString = '(= [ \\n\\t]* [,}\\]:])';

export interface SchemaReading {
  /** EBNF with the rule `root`. */
  readonly grammar: string;
  /** Keywords it leaves out; none if it had to be strict. */
  readonly unenforced: readonly string[];
}

/**
 * The grammar of `schema`, which may refer to its own parts; `where` names it in errors. Throws SCHEMA_INVALID,
 * SCHEMA_TOO_COSTLY and, for keywords that cannot be enforced but must, SCHEMA_UNSUPPORTED.
 */
export function readSchema(schema: unknown, strict: boolean, where = '#'): SchemaReading {
  return new SchemaGrammar(schema, strict).read(where);
}

class SchemaGrammar {
  readonly #root: unknown;
  readonly #strict: boolean;
  readonly #unenforced = new Set<string>();
  readonly #rules = new Rules();
  readonly #space: string;
  readonly #string: string;
  /** Rules of schemas that others refer to, by reference. */
  readonly #references = new Map<string, string>();
  /** References being resolved without a value between: coming back to one of them never ends. */
  #open: string[] = [];
  #any: string | null = null;
  #depth = 0;
  #values = 0;

  constructor(root: unknown, strict: boolean) {
    this.#root = root;
    this.#strict = strict;
    this.#space = this.#rules.add('space', space);
    const hex = '[0-9a-fA-F]';
    // Escaped halves of pairs would be characters that lengths count otherwise.
    const unicode = `"u" ([0-9a-cA-CefEF] ${hex}{3} | [dD] [0-7] ${hex}{2})`;
    const escaped = this.#rules.add('escape', `["\\\\/bfnrt] | ${unicode}`);
    const rest = this.#rules.reserve('characters');
    this.#rules.define(rest, `("\\"" | [^"\\\\\\x00-\\x1f] ${rest} | "\\\\" ${escaped} ${rest}) ${afterString}`);
    this.#string = rest;
  }

  read(where: string): SchemaReading {
    const grammar = this.#rules.text(this.#value(this.#root, where));
    return { grammar, unenforced: [...this.#unenforced] };
  }

  /** EBNF of the values of `schema`; `where` is its JSON pointer. */
  #value(given: unknown, where: string): string {
    if (++this.#values > mostValues)
      throw perigeeError('SCHEMA_TOO_COSTLY', { why: `it has more than ${mostValues} parts` });
    if (++this.#depth > mostDepth)
      throw perigeeError('SCHEMA_TOO_COSTLY', { why: `it nests deeper than ${mostDepth}` });
    const schema = this.#checked(given, where);
    const out = schema === null ? this.#anything() : this.#rules.add('value', this.#choices(schema, where));
    this.#depth--;
    return out;
  }

  #checked(given: unknown, where: string): Schema | null {
    if (given === true) return null;
    if (given === false) throw perigeeError('SCHEMA_INVALID', { where, why: 'false allows no value' });
    if (typeof given !== 'object' || given === null || Array.isArray(given)) {
      throw perigeeError('SCHEMA_INVALID', { where, why: 'there is no schema, which is an object or a boolean' });
    }
    const schema = withoutTuple(given as Schema);
    for (const [keyword, value] of Object.entries(schema)) {
      const known = assertions.get(keyword) ?? unenforceable.get(keyword);
      if (known !== undefined && !known.test(value)) {
        throw perigeeError('SCHEMA_INVALID', { where, why: `'${keyword}' must be ${known.expected}` });
      }
      if (!assertions.has(keyword) && !annotations.has(keyword) && !keyword.startsWith('x-'))
        this.#refuse(keyword, where, 'it is not known here');
    }
    return Object.keys(schema).some((keyword) => assertions.has(keyword)) ? schema : null;
  }

  #choices(schema: Schema, where: string): string {
    const { $ref, allOf, anyOf, oneOf } = schema;
    if ($ref !== undefined) return this.#reference(schema, where);
    if (allOf !== undefined) {
      const { allOf: _, ...rest } = schema;
      return this.#value(
        this.#merged([rest, ...allOf.map((part) => this.#resolved(part, where))], where),
        `${where}/allOf`,
      );
    }
    const branches = anyOf ?? oneOf;
    if (branches === undefined) return this.#plain(schema, where);
    const { anyOf: _, oneOf: __, ...rest } = schema;
    if (anyOf !== undefined && oneOf !== undefined) this.#refuse('oneOf', where, 'anyOf stands beside it');
    const keyword = anyOf === undefined ? 'oneOf' : 'anyOf';
    const restricts = Object.keys(rest).some((key) => assertions.has(key));
    const full = branches.map((branch) => this.#merged([rest, this.#resolved(branch, where)], where));
    if (anyOf === undefined) {
      const apart = (a: Schema, b: Schema) => disjoint(a, b, (part) => this.#resolved(part, where));
      if (full.some((a, i) => full.slice(i + 1).some((b) => !apart(a, b)))) {
        this.#refuse(keyword, where, 'its branches may hold at the same time; anyOf is possible');
      }
    }
    // A branch that nothing is added to stays a reference, so that it may lead back here.
    const chosen = restricts ? full : branches;
    return chosen.map((branch, i) => this.#value(branch, `${where}/${keyword}/${i}`)).join(' | ');
  }

  /** `given` without a reference at its top. */
  #resolved(given: unknown, where: string): Schema {
    let schema = this.#checked(given, where) ?? {};
    for (let steps = 0; schema.$ref !== undefined; steps++) {
      if (steps > mostDepth) throw perigeeError('SCHEMA_INVALID', { where, why: `'${schema.$ref}' refers to itself` });
      const { $ref, ...rest } = schema;
      schema = this.#merged([rest, this.#checked(this.#target($ref, where), where) ?? {}], where);
    }
    return schema;
  }

  #merged(parts: readonly Schema[], where: string): Schema {
    return merged(parts, where, (keyword, why) => this.#refuse(keyword, where, why));
  }

  #reference(schema: Schema, where: string): string {
    const { $ref = '', ...rest } = schema;
    if (Object.keys(rest).some((keyword) => assertions.has(keyword)))
      return this.#value(this.#resolved(schema, where), where);
    if (this.#open.includes($ref)) {
      throw perigeeError('SCHEMA_INVALID', { where, why: `'${$ref}' refers to itself without end` });
    }
    const known = this.#references.get($ref);
    if (known !== undefined) return known;
    const name = this.#rules.reserve('reference');
    this.#references.set($ref, name);
    if (!endsSomewhere({ $ref }, (part) => this.#resolved(part, where), where)) {
      throw perigeeError('SCHEMA_INVALID', {
        where,
        why: `a value for '${$ref}' would have to hold itself, without end`,
      });
    }
    this.#open.push($ref);
    this.#rules.define(name, this.#value(this.#target($ref, where), $ref));
    this.#open.pop();
    return name;
  }

  #target(reference: string, where: string): unknown {
    if (!reference.startsWith('#')) {
      const why = `'${reference}' is not a part of this schema`;
      throw perigeeError('SCHEMA_UNSUPPORTED', { keyword: '$ref', where, why });
    }
    const at = pointed(this.#root, reference);
    if (at === undefined) throw perigeeError('SCHEMA_INVALID', { where, why: `'${reference}' refers to nothing` });
    return at;
  }

  #plain(schema: Schema, where: string): string {
    const only = schema.const === undefined ? undefined : JSON.stringify(schema.const);
    const values =
      schema.enum?.filter((value) => only === undefined || JSON.stringify(value) === only) ??
      (only === undefined ? undefined : [schema.const]);
    const types = schemaTypes(schema);
    if (values !== undefined) {
      const fitting = values.filter((value) => typesOf(value).some((type) => types.includes(type)));
      const others = Object.keys(schema).filter(
        (key) => assertions.has(key) && !['type', 'enum', 'const'].includes(key),
      );
      if (others[0] !== undefined) this.#refuse(others[0], where, 'enum or const stands beside it');
      if (fitting.length === 0)
        throw perigeeError('SCHEMA_INVALID', { where, why: 'enum, const and type have no value in common' });
      return fitting.map((value) => literal(JSON.stringify(value))).join(' | ');
    }
    return types.map((type) => this.#ofType(type, schema, where)).join(' | ');
  }

  #ofType(type: string, schema: Schema, where: string): string {
    switch (type) {
      case 'null':
        return '"null"';
      case 'boolean':
        return '"true" | "false"';
      case 'integer':
      case 'number':
        return this.#number(type === 'integer' || schema.multipleOf === 1, schema, where);
      case 'string':
        return this.#text(schema, where);
      case 'array':
        return this.#array(schema, where);
      default:
        return this.#object(schema, where);
    }
  }

  #number(integer: boolean, schema: Schema, where: string): string {
    const { multipleOf } = schema;
    if (multipleOf !== undefined && multipleOf !== 1)
      this.#refuse('multipleOf', where, 'only multiples of 1 are possible');
    const { least, most } = bounds(schema, integer, (keyword, why) => this.#refuse(keyword, where, why));
    if (least === -Infinity && most === Infinity) return integer ? anyInteger : anyNumber;
    const found = numbersBetween(this.#rules, least, most, integer);
    if (found === null) throw perigeeError('SCHEMA_INVALID', { where, why: 'no number lies between its bounds' });
    return found;
  }

  #text({ pattern, minLength, maxLength, format }: Schema, where: string): string {
    const expression = pattern ?? (format === undefined ? undefined : formats.get(format));
    if ((minLength ?? 0) > (maxLength ?? Infinity)) {
      throw perigeeError('SCHEMA_INVALID', { where, why: 'minLength is more than maxLength' });
    }
    if (expression === undefined) return `"\\"" ${this.#string}`;
    const beside = 'a pattern or format stands beside it';
    if (minLength !== undefined) this.#refuse('minLength', where, beside);
    if (maxLength !== undefined) this.#refuse('maxLength', where, beside);
    if (pattern !== undefined && format !== undefined && formats.has(format)) {
      this.#refuse('format', where, 'a pattern stands beside it');
    }
    try {
      return `"\\"" ${patternGrammar(this.#rules, expression, where)} "\\""`;
    } catch (error) {
      if (this.#strict || !(error instanceof PerigeeError) || error.code !== 'SCHEMA_UNSUPPORTED') throw error;
      this.#refuse('pattern', where, error.message);
      return `"\\"" ${this.#string}`;
    }
  }

  #array(schema: Schema, where: string): string {
    const { items, prefixItems = [], maxItems, uniqueItems } = schema;
    if (uniqueItems === true && (maxItems === undefined || maxItems > 1)) {
      this.#refuse('uniqueItems', where, 'a grammar cannot remember the items before');
    }
    let minItems = schema.minItems ?? 0;
    let most = items === false ? Math.min(prefixItems.length, maxItems ?? Infinity) : (maxItems ?? Infinity);
    if (minItems > most) throw perigeeError('SCHEMA_INVALID', { where, why: 'minItems is more than there can be' });
    if (minItems > mostItems) {
      this.#refuse('minItems', where, `at most ${mostItems} are counted`);
      minItems = mostItems;
    }
    if (most !== Infinity && most > mostItems) {
      this.#refuse('maxItems', where, `at most ${mostItems} are counted`);
      most = Infinity;
    }
    const gap = this.#space;
    const comma = `${gap} "," ${gap}`;
    const heads = prefixItems.slice(0, most).map((item, i) => this.#inside(item, `${where}/prefixItems/${i}`));
    let tail = '';
    if (most > heads.length) {
      const item = this.#inside(items ?? true, `${where}/items`);
      const [least, room] = [Math.max(0, minItems - heads.length), most - heads.length];
      tail = repeated(item, comma, least, room, heads.length === 0);
    }
    // Items in front may be left out from the end, down to minItems.
    let body = tail;
    for (let i = heads.length - 1; i >= 0; i--) {
      const rest = this.#rules.add('items', `${i === 0 ? '' : `${comma} `}${heads[i]} ${body}`);
      body = i < minItems ? rest : `${rest}?`;
    }
    return `"[" ${gap} ${body} ${gap} "]"`;
  }

  /** A value inside another: references to what is around it have an end again. */
  #inside(schema: unknown, where: string): string {
    const open = this.#open;
    this.#open = [];
    const out = this.#value(schema, where);
    this.#open = open;
    return out;
  }

  #object(schema: Schema, where: string): string {
    const { properties = {}, required = [], additionalProperties, minProperties = 0, maxProperties } = schema;
    // What is required without being declared may be anything that is allowed beside the declared.
    const undeclared = required.filter((name) => !Object.hasOwn(properties, name));
    const names = [...Object.keys(properties), ...new Set(undeclared)];
    // Only what is declared, unless the schema says otherwise or declares nothing.
    const more = otherProperties(schema);
    if (undeclared.length > 0 && additionalProperties === false && more === false) {
      throw perigeeError('SCHEMA_INVALID', { where, why: `'${undeclared[0]}' is required, but not allowed` });
    }
    if (minProperties > required.length) this.#refuse('minProperties', where, 'properties are not counted');
    if (maxProperties !== undefined && (more !== false || maxProperties < names.length)) {
      this.#refuse('maxProperties', where, 'properties are not counted');
    }
    const gap = this.#space;
    const comma = `${gap} "," ${gap}`;
    const pair = (key: string, value: string) => this.#rules.add('pair', `${key} ${gap} ":" ${gap} ${value}`);
    const pairs = names.map((name) => ({
      name,
      pair: pair(
        literal(JSON.stringify(name)),
        this.#inside(Object.hasOwn(properties, name) ? properties[name] : more || true, `${where}/properties/${name}`),
      ),
    }));
    const extra =
      more === false ? null : pair(this.#otherKey(names), this.#inside(more, `${where}/additionalProperties`));
    // after[i]: what may follow when something was written and properties from i on are left; first: nothing was yet.
    let after = extra === null ? '""' : this.#rules.add('more', `(${comma} ${extra})*`);
    let first = extra === null ? '""' : this.#rules.add('first', `${extra} ${after} | ""`);
    for (const { name, pair } of pairs.reverse()) {
      const optional = required.includes(name) ? '' : ` | ${after}`;
      const optionalFirst = required.includes(name) ? '' : ` | ${first}`;
      first = this.#rules.add('first', `${pair} ${after}${optionalFirst}`);
      after = this.#rules.add('more', `${comma} ${pair} ${after}${optional}`);
    }
    return `"{" ${gap} ${first} ${gap} "}"`;
  }

  /** A key that surely is none of `names`: it begins like none of them, unescaped. */
  #otherKey(names: readonly string[]): string {
    if (names.length === 0) return `"\\"" ${this.#string}`;
    return `"\\"" ${inJsonString(unlike(names))} ${this.#string}`;
  }

  #anything(): string {
    if (this.#any !== null) return this.#any;
    this.#any = this.#rules.reserve('anything');
    const types = ['null', 'boolean', 'number', 'string', 'array', 'object'];
    this.#rules.define(this.#any, types.map((type) => this.#ofType(type, {}, '#')).join(' | '));
    return this.#any;
  }

  /** Throws if every keyword must be enforced; else the grammar goes on without this one. */
  #refuse(keyword: string, where: string, why: string): void {
    if (this.#strict) throw perigeeError('SCHEMA_UNSUPPORTED', { keyword, where, why });
    // The names go to logs, and unknown ones are the client's own words.
    if (this.#unenforced.size < mostNamed) this.#unenforced.add(keyword.slice(0, mostNameCharacters));
  }
}
