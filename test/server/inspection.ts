/** What is in Nano's file: a server is told about its model, also where the engine behind it is a fake. */
import { fileURLToPath } from 'node:url';
import { openGguf } from '../../src/gguf/open.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { inspectModel } from '../../src/model/inspect.ts';

const gguf = await openGguf(fileURLToPath(new URL('../../models/nano.gguf', import.meta.url)));
export const inspection = inspectModel(gguf, modelConfig(gguf));
