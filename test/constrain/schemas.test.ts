import Ajv2020 from 'ajv/dist/2020.js';
import { afterAll, describe, expect, it } from 'vitest';
import { cases, refused } from './schemas.ts';
import { answering, begin, possible, startConstraints } from './support.ts';

const constraints = startConstraints();
afterAll(() => constraints.close());

describe('a schema', () => {
  describe.each(cases)('of $name', ({ schema, valid, invalid }) => {
    it.each(valid)('lets %s be written and end', async (text) => {
      const ajv = new Ajv2020.default({ strict: false, validateFormats: false });
      expect(ajv.validate(schema as object, JSON.parse(text))).toBe(true);
      expect(await possible(constraints, answering(schema), text)).toEqual({ possible: true, ended: true });
    });

    it.each(invalid)('lets %s not be the answer', async (text) => {
      const found = await possible(constraints, answering(schema), text);
      expect(found.ended).toBe(false);
    });
  });
});

describe('is refused by name:', () => {
  it.each(refused)('%s', async (_, schema, code, words) => {
    const failure = begin(constraints, answering(schema));
    await expect(failure).rejects.toMatchObject({ code, status: 400 });
    await expect(failure).rejects.toThrow(words);
  });
});
