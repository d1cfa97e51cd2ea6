/** Schemas in the style of the JSON-Schema-Test-Suite, with texts that are valid for them and texts that are not. */
export interface SchemaCase {
  readonly name: string;
  readonly schema: unknown;
  readonly valid: readonly string[];
  readonly invalid: readonly string[];
}

const tree = {
  type: 'object',
  properties: { value: { type: 'integer' }, children: { type: 'array', items: { $ref: '#/$defs/tree' } } },
  required: ['value'],
};
const shape = (kind: string, size: object) => ({
  type: 'object',
  properties: { kind: { const: kind }, size },
  required: ['kind', 'size'],
});

export const cases: readonly SchemaCase[] = [
  { name: 'any object', schema: { type: 'object' }, valid: ['{}', '{"a": [1, null]}'], invalid: ['[]', '"a"', '{a'] },
  { name: 'string', schema: { type: 'string' }, valid: ['"é\\n\\u00e9"', '""'], invalid: ['1', '"\n"', '"\\x"'] },
  { name: 'integer', schema: { type: 'integer' }, valid: ['0', '-12'], invalid: ['1.5', '01', '1e3', 'null'] },
  { name: 'number', schema: { type: 'number' }, valid: ['1.5', '-2e-9', '7'], invalid: ['.5', '1.', '+1', '"1"'] },
  { name: 'types', schema: { type: ['boolean', 'null'] }, valid: ['true', 'null'], invalid: ['0', '"null"', 'nul '] },
  { name: 'enum', schema: { enum: ['a"b', 3, null] }, valid: ['"a\\"b"', '3', 'null'], invalid: ['"a"', '4'] },
  { name: 'const', schema: { const: { a: [1] } }, valid: ['{"a":[1]}'], invalid: ['{"a":[2]}', '{}'] },
  {
    name: 'properties',
    schema: {
      type: 'object',
      properties: { city: { type: 'string' }, days: { type: 'integer' }, wet: { type: 'boolean' } },
      required: ['city', 'wet'],
      additionalProperties: false,
    },
    valid: ['{"city": "Ulm", "wet": true}', '{"city":"","days":3,"wet":false}'],
    invalid: ['{"city": "Ulm"}', '{"wet"', '{"city": 1', '{"city": "a", "other"', '{"city":"a","wet":true,"'],
  },
  {
    name: 'additional properties of a type',
    schema: { type: 'object', properties: { id: { type: 'string' } }, additionalProperties: { type: 'integer' } },
    valid: ['{"id": "a", "size": 3}', '{"x": 1, "y": 2}', '{}'],
    invalid: ['{"id": 3', '{"x": "a"', '{"x": 1, "id"'],
  },
  {
    name: 'what is required without being declared',
    schema: { type: 'object', properties: { a: { type: 'null' } }, required: ['constructor'], 'x-order': 1 },
    valid: ['{"a":null,"constructor":[1]}', '{"constructor":"x"}'],
    invalid: ['{}', '{"a":null}'],
  },
  { name: 'no additional properties', schema: { type: 'object', properties: {} }, valid: ['{}'], invalid: ['{"'] },
  {
    name: 'items',
    schema: { type: 'array', items: { type: 'integer' }, minItems: 1, maxItems: 3 },
    valid: ['[1]', '[1, 2,3]'],
    invalid: ['[]', '[1,2,3,', '["', '[1,]'],
  },
  {
    name: 'prefix items',
    schema: { prefixItems: [{ type: 'integer' }, { type: 'boolean' }], items: false, type: 'array', minItems: 1 },
    valid: ['[1]', '[1,true]'],
    invalid: ['[]', '[true', '[1,true,'],
  },
  {
    name: 'nested',
    schema: {
      type: 'object',
      properties: {
        rows: { type: 'array', items: { type: 'array', items: { type: 'number' }, minItems: 2, maxItems: 2 } },
      },
      required: ['rows'],
    },
    valid: ['{"rows": [[1, 2.5], [3, 4]]}', '{"rows":[]}'],
    invalid: ['{"rows":[[1]', '{"rows":[1'],
  },
  {
    name: 'any of',
    schema: { anyOf: [{ type: 'integer' }, { type: 'object', properties: { a: { type: 'null' } }, required: ['a'] }] },
    valid: ['3', '{"a":null}'],
    invalid: ['"a"', '{}'],
  },
  {
    name: 'one of, told apart',
    schema: {
      oneOf: [shape('circle', { type: 'number' }), shape('box', { type: 'array', items: { type: 'number' } })],
    },
    valid: ['{"kind": "circle", "size": 1}', '{"kind":"box","size":[1,2]}'],
    invalid: ['{"kind":"circle","size":[', '{"kind":"line'],
  },
  {
    name: 'all of',
    schema: {
      allOf: [
        { type: 'object', properties: { a: { type: 'integer', minimum: 1 } }, required: ['a'] },
        { properties: { a: { maximum: 9 }, b: { type: 'boolean' } }, required: ['b'] },
      ],
    },
    valid: ['{"a":9,"b":true}'],
    invalid: ['{"a":0', '{"a":10', '{"a":9}'],
  },
  {
    name: 'recursive reference',
    schema: { $ref: '#/$defs/tree', $defs: { tree } },
    valid: ['{"value":1,"children":[{"value":2}]}'],
    invalid: ['{"children"', '{"value":1,"children":[1'],
  },
  {
    name: 'reference to the whole',
    schema: {
      type: 'object',
      properties: { next: { anyOf: [{ $ref: '#' }, { type: 'null' }] } },
      required: ['next'],
    },
    valid: ['{"next":{"next":null}}'],
    invalid: ['{"next":{}', '{"next":1'],
  },
  {
    name: 'lengths',
    schema: {
      type: 'object',
      properties: { code: { type: 'string', minLength: 2, maxLength: 4 }, note: { type: 'string' } },
      required: ['code'],
    },
    valid: ['{"code":"ab","note":"longer than four"}', '{"code":"é日😀\\n"}'],
    invalid: ['{"code":"a"', '{"code":"abcde', '{"code":"\\n\\n\\n\\n\\n'],
  },
  {
    name: 'lengths in a list',
    schema: { type: 'array', items: { type: 'string', maxLength: 3 } },
    valid: ['["abc", "", "x"]'],
    invalid: ['["abcd', '["a", "bcde'],
  },
  {
    name: 'pattern',
    schema: { type: 'string', pattern: '^[A-Z]{2}-\\d+$' },
    valid: ['"AB-12"'],
    invalid: ['"ab', '"A-'],
  },
  {
    name: 'pattern within',
    schema: { type: 'string', pattern: 'a"b|^x[^y]+$' },
    valid: ['"1a\\"b2"', '"xé"'],
    invalid: ['"ab"', '"x"'],
  },
  { name: 'date', schema: { type: 'string', format: 'date' }, valid: ['"2026-11-24"'], invalid: ['"2026-13', '"24.'] },
  {
    name: 'integer between',
    schema: { type: 'integer', minimum: -17, maximum: 105 },
    valid: ['-17', '0', '99', '105'],
    invalid: ['-18', '106', '200'],
  },
  {
    name: 'number between',
    schema: { type: 'number', minimum: 0.25, maximum: 2 },
    valid: ['0.25', '0.3', '1.75', '2', '1'],
    invalid: ['0.24', '2.1', '-1', '0.1', '3'],
  },
  {
    name: 'exclusive bounds',
    schema: { type: 'number', exclusiveMinimum: 0, exclusiveMaximum: 1 },
    valid: ['0.5', '0.001'],
    invalid: ['0}', '1', '-0.5'],
  },
  {
    name: 'names in need of escapes',
    schema: { type: 'object', properties: { 'a"\n': { type: 'null' }, 日本: { type: 'null' } }, required: ['日本'] },
    valid: ['{"a\\"\\n":null,"日本":null}', '{"日本":null}'],
    invalid: ['{"a"', '{}'],
  },
];

const noRoom = { type: 'object', required: ['a'], additionalProperties: false };

/** What is refused, and the code and words that say so. */
export const refused: readonly (readonly [name: string, schema: unknown, code: string, words: string])[] = [
  ['an unknown type', { type: 'hiccup' }, 'SCHEMA_INVALID', "'type'"],
  ['no schema', 3, 'SCHEMA_INVALID', 'no schema'],
  ['false', { type: 'array', items: false, minItems: 1 }, 'SCHEMA_INVALID', 'minItems'],
  ['a broken pattern', { type: 'string', pattern: '(' }, 'SCHEMA_INVALID', "'pattern'"],
  ['look-ahead', { type: 'string', pattern: '^(?=a)b' }, 'SCHEMA_UNSUPPORTED', "'pattern'"],
  ['a huge repetition', { type: 'string', pattern: '^(a{200}){9999}$' }, 'SCHEMA_UNSUPPORTED', "'pattern'"],
  ['not', { not: { type: 'string' } }, 'SCHEMA_UNSUPPORTED', "'not'"],
  ['a condition', { if: {}, else: {} }, 'SCHEMA_UNSUPPORTED', "'if'"],
  ['unique items', { type: 'array', uniqueItems: true }, 'SCHEMA_UNSUPPORTED', "'uniqueItems'"],
  ['contains', { type: 'array', contains: {} }, 'SCHEMA_UNSUPPORTED', "'contains'"],
  ['pattern properties', { patternProperties: {} }, 'SCHEMA_UNSUPPORTED', "'patternProperties'"],
  ['multiples', { type: 'integer', multipleOf: 3 }, 'SCHEMA_UNSUPPORTED', "'multipleOf'"],
  ['what is required but not allowed', noRoom, 'SCHEMA_INVALID', "'a' is required"],
  ['branches that overlap', { oneOf: [{ type: 'integer' }, { type: 'number' }] }, 'SCHEMA_UNSUPPORTED', "'oneOf'"],
  ['a foreign reference', { $ref: 'http://example.com/x' }, 'SCHEMA_UNSUPPORTED', "'$ref'"],
  ['a reference to nothing', { $ref: '#/$defs/x' }, 'SCHEMA_INVALID', 'refers to nothing'],
  ['a reference to itself', { $ref: '#/$defs/x', $defs: { x: { $ref: '#/$defs/x' } } }, 'SCHEMA_INVALID', 'itself'],
  [
    'values without end',
    { $ref: '#/$defs/x', $defs: { x: { type: 'object', properties: { x: { $ref: '#/$defs/x' } }, required: ['x'] } } },
    'SCHEMA_INVALID',
    'without end',
  ],
  ['no number between', { type: 'integer', minimum: 3, maximum: 2 }, 'SCHEMA_INVALID', 'bounds'],
  ['depth', deep(100), 'SCHEMA_TOO_COSTLY', 'deeper'],
  ['size', wide(20_000), 'SCHEMA_TOO_COSTLY', 'characters'],
  ['branches of branches', branching(24), 'SCHEMA_TOO_COSTLY', 'parts'],
];

function deep(depth: number): unknown {
  return depth === 0 ? { type: 'null' } : { type: 'array', items: deep(depth - 1) };
}

function wide(count: number): unknown {
  const names = Array.from({ length: count }, (_, i) => `property ${i}`);
  return { type: 'object', properties: Object.fromEntries(names.map((name) => [name, { type: 'string' }])) };
}

/** Two to the power of `depth` ways through. */
function branching(depth: number): unknown {
  const levels = Array.from({ length: depth }, (_, i) => {
    const next = { $ref: `#/$defs/d${i + 1}`, minItems: 0 };
    return [`d${i}`, { anyOf: [next, next] }];
  });
  return { $ref: '#/$defs/d0', $defs: { ...Object.fromEntries(levels), [`d${depth}`]: { type: 'null' } } };
}

const record = { patternProperties: { '^x-': { type: 'integer' } }, additionalProperties: false };
const either = [{ properties: { a: { type: 'integer' } } }, { properties: { b: { type: 'integer' } } }];
const condition = {
  properties: { kind: { enum: ['a', 'b'] } },
  required: ['kind'],
  if: { properties: { kind: { const: 'a' } } },
  // biome-ignore lint/suspicious/noThenProperty: JSON Schema's
  then: { required: ['size'] },
};
const closed = (name: string) => ({ properties: { [name]: { type: 'null' } }, additionalProperties: false });

/** Arguments that the schema allows, some that it rules out by what is kept, and the keywords that are not. */
export const partlyEnforced: readonly (readonly [
  schema: object,
  allowed: string,
  ruledOut: string | null,
  keywords: string[],
])[] = [
  [{ ...record, required: ['x-1'] }, '{"x-1":1}', '{}', ['patternProperties']],
  [
    { properties: { a: { type: 'string', pattern: '^a+$', minLength: 1, maxLength: 2 } } },
    '{"a":"aaa"}',
    '{"a":"b"}',
    ['minLength', 'maxLength'],
  ],

  [record, '{"x-1": 2}', '{"x-1": "2"}', ['patternProperties']],
  [
    { propertyNames: { pattern: '^a' }, additionalProperties: { type: 'null' } },
    '{"b":null}',
    '{"b":1}',
    ['propertyNames'],
  ],
  [
    { properties: { a: { type: 'array', uniqueItems: true, items: { type: 'integer' } } } },
    '{"a":[1,1]}',
    '{"a":[""]}',
    ['uniqueItems'],
  ],
  [
    { properties: { a: { type: 'array', contains: { const: 1 }, maxContains: 1 } } },
    '{"a":[2]}',
    '{"a":2}',
    ['contains', 'maxContains'],
  ],
  [{ properties: { a: { type: 'string', not: { const: 'b' } } } }, '{"a":"b"}', '{"a":1}', ['not']],
  [condition, '{"kind":"a","size":3}', '{"size":3}', ['if', 'then']],
  [
    { properties: { a: { type: 'null' } }, dependentRequired: { a: ['b'] } },
    '{"a":null,"b":1}',
    '{"a":1}',
    ['dependentRequired'],
  ],
  [
    { properties: { a: { type: 'null' } }, unevaluatedProperties: false },
    '{"a":null}',
    '{"b":null}',
    ['unevaluatedProperties'],
  ],
  [{ properties: { a: { type: 'number', multipleOf: 0.01, maximum: 9 } } }, '{"a":0.125}', '{"a":10}', ['multipleOf']],
  [{ properties: { a: { type: 'integer', minimum: 1, maximum: 2 ** 63 } } }, '{"a":1000}', '{"a":0}', ['maximum']],
  [
    { properties: { a: { type: 'string', pattern: '^[a-z]{2}$', minLength: 3 } } },
    '{"a":"xy"}',
    '{"a":"x"}',
    ['minLength'],
  ],
  [
    { properties: { a: { type: 'string', pattern: '^(?!x)', maxLength: 2 } } },
    '{"a":"xyz"}',
    '{"a":1}',
    ['maxLength', 'pattern'],
  ],
  [{ properties: { a: { type: 'string', pattern: '^\\-$' } } }, '{"a":"-"}', '{"a":1}', ['pattern']],
  [{ properties: { a: { type: 'string', enum: ['x', 'yy'], minLength: 2 } } }, '{"a":"x"}', '{"a":"z"}', ['minLength']],
  [{ oneOf: either }, '{"a":1}', '{"a":"1"}', ['oneOf']],
  [{ properties: { a: { type: 'array', maxItems: 1000, minItems: 1 } } }, '{"a":[1]}', '{"a":[]}', ['maxItems']],
  [{ allOf: [closed('a'), closed('b')] }, '{"a":null,"b":null}', '{"c":1}', ['additionalProperties']],
  [{ minProperties: 2, properties: { a: { type: 'null' } } }, '{"a":null}', '{"a":1}', ['minProperties']],
  [{ properties: { a: { type: 'null', frobnicate: true } } }, '{"a":null}', '{"a":1}', ['frobnicate']],
];

/** Compiles for half a minute: a thousand states, each with most of the vocabulary before it. */
export const slow = {
  type: 'string',
  pattern: `^${Array.from({ length: 12 }, (_, i) => `(.{0,200}${i})`).join('|')}$`,
};
