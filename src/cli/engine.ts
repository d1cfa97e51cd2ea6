/** The engine process of `perigee serve`. */
import { serveEngine } from '../engine-process/serve-engine.ts';
import { loadEngine } from './load-engine.ts';

serveEngine(loadEngine);
