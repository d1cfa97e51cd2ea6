/** The keywords of JSON Schema that are understood, and what can be told from a schema without making a grammar. */
import { perigeeError } from '../errors.ts';
import { isRegularExpression } from './pattern.ts';

/** A schema that is an object, its known keywords checked. */
export interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly allOf?: readonly unknown[];
  readonly anyOf?: readonly unknown[];
  readonly oneOf?: readonly unknown[];
  readonly properties?: Readonly<Record<string, unknown>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: unknown;
  readonly patternProperties?: Readonly<Record<string, unknown>>;
  readonly minProperties?: number;
  readonly maxProperties?: number;
  readonly items?: unknown;
  readonly prefixItems?: readonly unknown[];
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly uniqueItems?: boolean;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly pattern?: string;
  readonly format?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly exclusiveMaximum?: number;
  readonly multipleOf?: number;
}

interface Expected {
  readonly expected: string;
  readonly test: (value: unknown) => boolean;
}

export const allTypes: readonly string[] = ['null', 'boolean', 'number', 'string', 'array', 'object'];
const typeNames = [...allTypes, 'integer'];

const isType = (value: unknown) => typeof value === 'string' && typeNames.includes(value);
const isText = (value: unknown) => typeof value === 'string';
const isList = (value: unknown) => Array.isArray(value) && value.length > 0;
const isObject = (value: unknown) => typeof value === 'object' && value !== null && !Array.isArray(value);
const isSchema = (value: unknown) => typeof value === 'boolean' || isObject(value);
const text: Expected = { expected: 'a string', test: isText };
const schemas: Expected = {
  expected: 'a list of schemas',
  test: (value) => isList(value) && (value as unknown[]).every(isSchema),
};
const count: Expected = {
  expected: 'a whole number, not negative',
  test: (value) => Number.isSafeInteger(value) && (value as number) >= 0,
};
const bound: Expected = { expected: 'a number', test: (value) => typeof value === 'number' };
const schema: Expected = { expected: 'a schema', test: isSchema };
const schemasByName: Expected = {
  expected: 'an object of schemas',
  test: (value) => isObject(value) && Object.values(value as object).every(isSchema),
};
const namesByName: Expected = {
  expected: 'an object of lists of names',
  test: (value) =>
    isObject(value) && Object.values(value as object).every((list) => Array.isArray(list) && list.every(isText)),
};

/** Keywords that restrict values, and the form of their own. Every other one that is no annotation is refused. */
export const assertions: ReadonlyMap<string, Expected> = new Map<string, Expected>([
  ['$ref', text],
  [
    'type',
    {
      expected: `one of ${typeNames.join(', ')}, or a list of them`,
      test: (value) => isType(value) || (isList(value) && (value as unknown[]).every(isType)),
    },
  ],
  ['enum', { expected: 'a list of values', test: isList }],
  ['const', { expected: 'a value', test: () => true }],
  ['allOf', schemas],
  ['anyOf', schemas],
  ['oneOf', schemas],
  ['properties', schemasByName],
  ['required', { expected: 'a list of names', test: (value) => Array.isArray(value) && value.every(isText) }],
  ['additionalProperties', schema],
  ['minProperties', count],
  ['maxProperties', count],
  // Drafts before 2020 have tuples in it.
  ['items', { expected: 'a schema', test: (value) => isSchema(value) || schemas.test(value) }],
  ['prefixItems', schemas],
  ['minItems', count],
  ['maxItems', count],
  ['uniqueItems', { expected: 'a boolean', test: (value) => typeof value === 'boolean' }],
  ['minLength', count],
  ['maxLength', count],
  ['pattern', text],
  ['format', text],
  ['minimum', bound],
  ['maximum', bound],
  ['exclusiveMinimum', bound],
  ['exclusiveMaximum', bound],
  ['multipleOf', { expected: 'a number above 0', test: (value) => typeof value === 'number' && value > 0 }],
]);

/** Standard keywords that no grammar is made of. Their form is checked all the same. */
export const unenforceable: ReadonlyMap<string, Expected> = new Map<string, Expected>([
  ['not', schema],
  ['if', schema],
  ['then', schema],
  ['else', schema],
  ['contains', schema],
  ['minContains', count],
  ['maxContains', count],
  ['propertyNames', schema],
  [
    'patternProperties',
    {
      expected: 'an object of schemas by regular expressions',
      test: (value) => schemasByName.test(value) && Object.keys(value as object).every(isRegularExpression),
    },
  ],
  ['dependentRequired', namesByName],
  ['dependentSchemas', schemasByName],
  ['unevaluatedItems', schema],
  ['unevaluatedProperties', schema],
]);

/** Of these, the ones that may speak of properties that nothing declares beside them. */
const mayDeclare = ['if', 'dependentRequired', 'dependentSchemas', 'dependencies'];

/** Keywords that restrict nothing by themselves. */
export const annotations: ReadonlySet<string> = new Set([
  '$schema',
  '$id',
  '$anchor',
  '$dynamicAnchor',
  '$vocabulary',
  '$comment',
  '$defs',
  'definitions',
  'title',
  'description',
  'default',
  'examples',
  'example',
  'deprecated',
  'readOnly',
  'writeOnly',
  // OpenAPI's and OpenAI's. Without null an answer is valid for a nullable schema all the same.
  'discriminator',
  'nullable',
  'strict',
  'contentEncoding',
  'contentMediaType',
  'contentSchema',
  // Beside a tuple in items it is read; else it says nothing.
  'additionalItems',
]);

/** Drafts before 2020 have a tuple in items, and in additionalItems what follows it. */
export function withoutTuple(schema: Schema): Schema {
  if (!Array.isArray(schema.items) || schema.items.length === 0) return schema;
  const { items, additionalItems = true, ...rest } = schema as Schema & { additionalItems?: unknown };
  return { ...rest, prefixItems: items as readonly unknown[], items: additionalItems };
}

/** The schema of properties that are not declared, false: there are none. */
export function otherProperties(schema: Schema): unknown {
  const { properties, additionalProperties, patternProperties } = schema;
  // Names are not told apart by patterns: any of their schemas will do.
  const byPattern = Object.values(patternProperties ?? {}).filter((each) => each !== false);
  if (byPattern.length > 0) return { anyOf: [...byPattern, ...(additionalProperties ? [additionalProperties] : [])] };
  if (additionalProperties !== undefined) return additionalProperties;
  return properties === undefined || mayDeclare.some((keyword) => Object.hasOwn(schema, keyword));
}

export function schemaTypes({ type }: Schema): readonly string[] {
  if (type === undefined) return allTypes;
  return typeof type === 'string' ? [type] : type;
}

/** The types a value has: an integer is a number as well. */
export function typesOf(value: unknown): string[] {
  if (value === null) return ['null'];
  if (Array.isArray(value)) return ['array'];
  if (Number.isInteger(value)) return ['integer', 'number'];
  return [typeof value];
}

/** Told of a keyword that cannot be enforced, and why; returns where answers do without. */
export type Refuse = (keyword: string, why: string) => void;

/** One schema that says what all of `parts` say, less what two of them say differently and cannot be joined. */
export function merged(parts: readonly Schema[], where: string, refuse: Refuse): Schema {
  const out: Record<string, unknown> = {};
  const given = parts.filter((part) => Object.keys(part).some((keyword) => assertions.has(keyword)));
  const apart = [
    ...refusedApart(given, 'additionalProperties', 'properties', refuse),
    ...refusedApart(given, 'items', 'prefixItems', refuse),
  ];
  for (const part of parts) {
    for (const [keyword, value] of Object.entries(part)) {
      const before = out[keyword];
      if (apart.includes(keyword)) continue;
      out[keyword] =
        before === undefined || !assertions.has(keyword) ? value : joined(keyword, before, value, where, refuse);
    }
  }
  return out;
}

/** `rest` is about what its own schema's `named` leaves over: joined to another's it would mean something else. */
function refusedApart(parts: readonly Schema[], rest: keyof Schema, named: keyof Schema, refuse: Refuse): string[] {
  const strict = parts.filter((part) => part[rest] !== undefined && part[rest] !== true);
  if (strict.length === 0 || !parts.some((part) => part[named] !== undefined && part !== strict[0])) return [];
  refuse(rest, `another part that holds at the same time has '${named}'`);
  return [rest];
}

function joined(keyword: string, a: unknown, b: unknown, where: string, refuse: Refuse): unknown {
  if (JSON.stringify(a) === JSON.stringify(b)) return a;
  switch (keyword) {
    case 'type': {
      const [left, right] = [schemaTypes({ type: a } as Schema), schemaTypes({ type: b } as Schema)];
      const both = left.filter((type) => right.includes(type) || (type === 'integer' && right.includes('number')));
      const narrowed = right.filter(
        (type) => type === 'integer' && left.includes('number') && !left.includes('integer'),
      );
      if (both.length + narrowed.length > 0) return [...both, ...narrowed];
      throw perigeeError('SCHEMA_INVALID', { where, why: 'no type is left' });
    }
    case 'required':
      return [...new Set([...(a as string[]), ...(b as string[])])];
    case 'properties': {
      const [left, right] = [a as Record<string, unknown>, b as Record<string, unknown>];
      const both = Object.keys(left).filter((name) => Object.hasOwn(right, name));
      return {
        ...left,
        ...right,
        ...Object.fromEntries(both.map((name) => [name, { allOf: [left[name], right[name]] }])),
      };
    }
    case 'minimum':
    case 'exclusiveMinimum':
    case 'minLength':
    case 'minItems':
    case 'minProperties':
      return Math.max(a as number, b as number);
    case 'maximum':
    case 'exclusiveMaximum':
    case 'maxLength':
    case 'maxItems':
    case 'maxProperties':
      return Math.min(a as number, b as number);
    case 'enum': {
      const left = new Set((a as unknown[]).map((value) => JSON.stringify(value)));
      return (b as unknown[]).filter((value) => left.has(JSON.stringify(value)));
    }
    case 'allOf':
      return [...(a as unknown[]), ...(b as unknown[])];
    default:
      refuse(keyword, 'two different ones would have to hold at once');
      return a;
  }
}

/** Whether surely no value is valid for both; `resolve` follows references. */
export function disjoint(a: Schema, b: Schema, resolve: (part: unknown) => Schema, depth = 0): boolean {
  const kinds = (schema: Schema) =>
    schema.const !== undefined
      ? typesOf(schema.const)
      : (schema.enum?.flatMap(typesOf) ??
        schemaTypes(schema).flatMap((t) => (t === 'integer' ? ['integer', 'number'] : [t])));
  if (!kinds(a).some((kind) => kinds(b).includes(kind))) return true;
  const values = ({ const: only, enum: many }: Schema) =>
    (only === undefined ? many : [only])?.map((v) => JSON.stringify(v));
  const [left, right] = [values(a), values(b)];
  if (left !== undefined && right !== undefined) return !left.some((value) => right.includes(value));
  if (depth > 4 || kinds(a).some((kind) => kind !== 'object')) return false;
  return (a.required ?? []).some((name) => {
    if (!b.required?.includes(name) || !a.properties?.[name] || !b.properties?.[name]) return false;
    return disjoint(resolve(a.properties[name]), resolve(b.properties[name]), resolve, depth + 1);
  });
}

/** Whether some value of the schema is finite: references that every value must follow may not lead in a circle. */
export function endsSomewhere(
  given: unknown,
  resolve: (part: unknown) => Schema,
  where: string,
  open: readonly string[] = [],
): boolean {
  const reference = (given as Schema | null)?.$ref;
  if (reference !== undefined && open.includes(reference)) return false;
  if (open.length > 32) throw perigeeError('SCHEMA_TOO_COSTLY', { why: 'its references nest too deep' });
  const path = reference === undefined ? open : [...open, reference];
  const ends = (part: unknown) => endsSomewhere(part, resolve, where, path);
  const { required = [], properties = {}, items, prefixItems = [], minItems = 0, ...schema } = resolve(given);
  if (schema.const !== undefined || schema.enum !== undefined) return true;
  if (!(schema.allOf ?? []).every(ends)) return false;
  const branches = schema.anyOf ?? schema.oneOf;
  if (branches !== undefined && !branches.some(ends)) return false;
  if (schemaTypes(schema).some((type) => type !== 'object' && type !== 'array')) return true;
  const object =
    schemaTypes(schema).includes('object') &&
    required.every((name) => ends(Object.hasOwn(properties, name) ? properties[name] : true));
  const array = schemaTypes(schema).includes('array');
  const first = prefixItems.slice(0, minItems);
  return object || (array && first.every(ends) && (minItems <= first.length || ends(items ?? true)));
}
